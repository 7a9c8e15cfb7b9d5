/**
 * A stream of 32-bit words in which any word can be computed without those before it: word i is a hash of i under a
 * key, and the key is a hash of a seed and a label. Tensors can thus be made in any order, in pieces, by any process.
 */
export interface RandomStream {
  readonly low: number
  readonly high: number
}

/** The stream of this seed and label. Other seeds and other labels give unrelated streams. */
export function randomStream(seed: number, label: string): RandomStream {
  let low = mix(seed | 0)
  let high = mix(low ^ Math.floor(seed / 2 ** 32))
  for (let i = 0; i < label.length; i++) {
    low = mix(low ^ label.charCodeAt(i))
    high = mix(Math.imul(high, 31) + low)
  }
  return { low, high }
}

/** Word `index` of a stream, as a signed 32-bit integer; all 2^32 indices of a stream give different words. */
export function wordAt({ low, high }: RandomStream, index: number): number {
  return mix(mix(Math.imul(index, 0x9e3779b1) + low) ^ high)
}

/** A one-to-one map of 32-bit integers in which every input bit reaches every output bit. */
function mix(value: number): number {
  let bits = value | 0
  bits = Math.imul(bits ^ (bits >>> 16), 0x21f0aaad)
  bits = Math.imul(bits ^ (bits >>> 15), 0x735a2d97)
  return bits ^ (bits >>> 15)
}
