import type { Device, Tensor } from '@moe-ep/core'
import { fillRepeating, repeatAfter } from './device-words.js'

/** Which bits of a random word are kept, and which are set: gives finite numbers of a modest range in every element. */
export interface Pattern {
  readonly keep: number
  readonly set: number
}

export const patterns = {
  /** Two bf16, magnitudes in [2^-7, 2). */
  bf16: { keep: 0x83ff83ff, set: 0x3c003c00 },
  /** Four e4m3, magnitudes below 2: the codes of NaN do not occur. */
  fp8: { keep: 0xbfbfbfbf, set: 0 },
  /** Four e4m3 that are positive, as scales are. */
  positiveFp8: { keep: 0x3f3f3f3f, set: 0x01010101 },
  /** Codes of formats that have no NaN, or whose NaN is welcome. */
  anyBits: { keep: -1, set: 0 },
  /** Four exponents, 2^-7 to 1. */
  exponent: { keep: 0x07070707, set: 0x78787878 },
  /** A LogFMT range: bf16 in [2^-6, 2^-5), then one in [1, 2). */
  range: { keep: 0x007f007f, set: 0x3f803c80 },
  /** Two bf16 that are 1. */
  one: { keep: 0, set: 0x3f803f80 },
  /** One positive f32 in [2^-7, 2^-6). */
  scale: { keep: 0x007fffff, set: 0x3c000000 },
} as const satisfies Record<string, Pattern>

/** A key for {@link wordAt}: other seeds, labels and ranks give unrelated words. */
export function randomKey(seed: number, label: string, rank: number): number {
  let key = scramble(seed ^ 0x5bd1e995)
  for (const character of `${label}/${rank}`) key = scramble(key + (character.codePointAt(0) ?? 0))
  return key
}

/** Word `index` of a sequence; any word can be had without those before it, on any rank. */
export function wordAt(key: number, index: number): number {
  return scramble(scramble(index ^ key) + key)
}

/** Fills a tensor with the words of a sequence; on cuda in the order of the default stream, and with words that repeat. */
export function fillRandom(tensor: Tensor, key: number, pattern: Pattern): void {
  if (tensor.device.kind === 'cpu') {
    writeWords(wordsOf(tensor), key, pattern)
    return
  }
  const name = `${key}/${pattern.keep}/${pattern.set}`
  fillRepeating(tensor, name, (count) => writeWords(new Uint32Array(count), key, pattern))
}

function writeWords(words: Uint32Array, key: number, pattern: Pattern): Uint32Array {
  for (let i = 0; i < words.length; i++) words[i] = (wordAt(key, i) & pattern.keep) | pattern.set
  return words
}

/** One row of a matrix. */
export interface RowPlace {
  /** Where the matrix lies, or one that was filled alike. */
  readonly device: Pick<Device, 'kind'>
  readonly row: number
  readonly rowBytes: number
}

/** A row of the matrix that {@link fillRandom} writes, as bytes. */
export function randomRow(key: number, pattern: Pattern, { device, row, rowBytes }: RowPlace): Uint8Array {
  const words = rowBytes / 4
  const period = device.kind === 'cpu' ? Infinity : repeatAfter
  const result = Uint32Array.from(
    { length: words },
    (_, i) => (wordAt(key, (row * words + i) % period) & pattern.keep) | pattern.set,
  )
  return new Uint8Array(result.buffer)
}

/** The bytes of a contiguous tensor, without a copy. */
export function bytesOf(tensor: Tensor): Uint8Array {
  const { data } = tensor
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
}

function wordsOf(tensor: Tensor): Uint32Array {
  const { data } = tensor
  return new Uint32Array(data.buffer, data.byteOffset, Math.floor(data.byteLength / 4))
}

/** One-to-one on 32-bit integers; every bit of the argument reaches every bit of the result. */
function scramble(value: number): number {
  let bits = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35)
  return bits ^ (bits >>> 16)
}
