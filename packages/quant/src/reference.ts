/**
 * The same operations in plain TypeScript: the oracle. Slow, obvious, complete. Matrices are row-major plain arrays; every
 * `Math.fround` is the rounding of one f32 operation.
 */
import { encode, f32ToBits, f32ToFp8E4m3, fp8E4m3ToF32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from './dequantize-per-token-group.js'
import type { GroupNumerics } from './quantize-per-token-group.js'

const largest = 448

/** A group's stored scale, and how one of its elements becomes the number to round to e4m3. */
function scaleOfGroup(
  group: ArrayLike<number>,
  numerics: GroupNumerics,
): { readonly scale: number; readonly apply: (x: number) => number } {
  const numbers = Array.from(group, Math.abs).filter((magnitude) => !Number.isNaN(magnitude))
  const floor = Math.fround(numerics === 'vllm' ? 1e-10 : 1e-4)
  const amax = numbers.reduce((a, b) => Math.max(a, b), floor)
  if (numerics === 'vllm') {
    const scale = Math.fround(amax / largest)
    return { scale, apply: (x) => Math.fround(x / scale) }
  }
  const scale = Math.fround(amax * Math.fround(1 / largest))
  const multiplier = Math.fround(largest / amax)
  return { scale, apply: (x) => Math.fround(x * multiplier) }
}

/**
 * What `quantizePerTokenGroup` computes, from the definition.
 * @param x f32 numbers [M, H].
 * @returns e4m3 codes [M, H] and f32 scales [M, ceil(H / groupSize)].
 */
export function quantizePerTokenGroup(
  x: ArrayLike<number>,
  options: { readonly hidden: number; readonly groupSize: number; readonly numerics: GroupNumerics },
): { readonly values: Uint8Array; readonly scales: Float32Array } {
  const { hidden, groupSize, numerics } = options
  const values = new Uint8Array(x.length)
  const scales: number[] = []
  for (let row = 0; row < x.length; row += hidden) {
    for (let begin = row; begin < row + hidden; begin += groupSize) {
      const end = Math.min(begin + groupSize, row + hidden)
      const { scale, apply } = scaleOfGroup(Array.prototype.slice.call(x, begin, end), numerics)
      scales.push(scale)
      for (let i = begin; i < end; i++) values[i] = f32ToFp8E4m3(apply(x[i]!))
    }
  }
  return { values, scales: Float32Array.from(scales) }
}

/**
 * What `dequantizePerTokenGroup` computes, from the definition.
 * @param values e4m3 codes [M, H].
 * @param scales f32 numbers [M, ceil(H / groupSize)].
 * @returns elements [M, H] in the storage form of `dtype`.
 */
export function dequantizePerTokenGroup(
  values: ArrayLike<number>,
  scales: ArrayLike<number>,
  options: { readonly hidden: number; readonly groupSize: number; readonly dtype: DequantizedDType },
): StorageArray {
  const { hidden, groupSize, dtype } = options
  const numGroups = Math.ceil(hidden / groupSize)
  const products = Array.from(values, (code, i) => {
    const group = Math.floor(i / hidden) * numGroups + Math.floor((i % hidden) / groupSize)
    return Math.fround(fp8E4m3ToF32(code) * scales[group]!)
  })
  if (dtype !== 'f32') return encode(dtype, products)
  // Written as bits: which NaN a float array stores is the engine's choice.
  return new Float32Array(Uint32Array.from(products, f32ToBits).buffer)
}
