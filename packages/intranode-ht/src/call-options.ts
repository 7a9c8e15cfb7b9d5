import { type Device, requireInteger, requireStream, type Stream } from '@moe-ep/core'
import type { CallOptions } from './dispatch-types.js'

/** What all calls take, defaults filled in. */
export interface Call {
  readonly stream: Stream
  readonly timeoutMs: number
  /** 0: the default. */
  readonly numSms: number
}

/** Where and how a call runs. @throws ERR_MOE_EP_ARGUMENT. @param buffer what it is called on */
export function callOf(buffer: { readonly device: Device; readonly timeoutMs: number }, options: CallOptions): Call {
  const { stream = buffer.device.defaultStream, timeoutMs = buffer.timeoutMs, numSms = 0 } = options
  requireStream('stream', stream, buffer.device)
  requireInteger('timeoutMs', timeoutMs, 1)
  requireInteger('numSms', numSms, 0, 1024)
  return { stream, timeoutMs, numSms }
}
