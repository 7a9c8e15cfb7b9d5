import { argumentError } from '@moe-ep/core'

/**
 * `max|y - ref| / max|ref|`, the number that is held against the tolerance. Where the reference is all zeros (or
 * empty) it is 0 for an output of zeros and infinite for any other. A NaN or an infinity on either side makes it
 * infinite, so such an output never passes.
 *
 * @throws ERR_MOE_EP_ARGUMENT when the lengths differ.
 */
export function maxRelError(y: Float32Array, reference: Float32Array): number {
  if (y.length !== reference.length) throw argumentError('y', `${reference.length} elements`, y.length)
  let difference = 0
  let scale = 0
  for (let i = 0; i < y.length; i++) {
    const expected = reference[i]!
    const distance = Math.abs(y[i]! - expected)
    if (!(distance < Infinity)) return Infinity
    if (distance > difference) difference = distance
    scale = Math.max(scale, Math.abs(expected))
  }
  return difference === 0 ? 0 : difference / scale
}
