import type { Device } from './device.js'
import { argumentError } from './error.js'
import type { Stream } from './stream.js'

/** @throws ERR_MOE_EP_ARGUMENT unless `value` is a stream of the device. Streams of the other module format's copy will do. */
export function requireStream(argument: string, value: unknown, device: Device): asserts value is Stream {
  if (typeof value !== 'object' || value === null || !('follow' in value))
    throw argumentError(argument, 'a Stream', value)
  const stream = value as Stream
  if (stream.device.name !== device.name)
    throw argumentError(argument, `a stream of ${device}`, `one of ${stream.device}`)
}
