import { MoeEpError } from '@moe-ep/core'

/** Throws ERR_MOE_EP_ABORTED, with the signal's reason as cause, once `signal` is aborted. */
export function throwIfAborted(signal: AbortSignal | undefined, operation: string): void {
  if (signal?.aborted !== true) return
  throw new MoeEpError('ERR_MOE_EP_ABORTED', `${operation} was aborted`, { cause: signal.reason })
}
