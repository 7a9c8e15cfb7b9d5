import { type Device, Stream } from '@moe-ep/core'

/**
 * Where to tell the other ranks of a refusal: the call's stream, or the default stream where that does not run. Undefined: nothing can be
 * told, or nobody waits for it, for what is captured the others capture, too.
 */
export function streamToTell(wanted: Stream | undefined, device: Device): Stream | undefined {
  const runs = (stream: unknown): stream is Stream =>
    stream instanceof Stream && stream.device.name === device.name && !stream.closed
  const stream = [wanted, device.defaultStream].find(runs)
  return stream?.capturing === true ? undefined : stream
}
