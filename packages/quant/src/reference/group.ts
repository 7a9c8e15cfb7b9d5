import { encode, f32ToBits, f32ToFp8E4m3, fp8E4m3ToF32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import type { GroupNumerics } from '../quantize-per-token-group.js'
import { largestMagnitude, type ScaleRule, scaleOf } from './scale-rules.js'

/** e4m3 codes of a matrix, and one f32 scale a group in row-major order. */
export interface GroupCodes {
  readonly values: Uint8Array
  readonly scales: Float32Array
}

/** Quantises every group of every row by one rule. */
export function quantizeGroups(
  x: ArrayLike<number>,
  options: { readonly hidden: number; readonly groupSize: number; readonly rule: ScaleRule },
): GroupCodes {
  const { hidden, groupSize, rule } = options
  const values = new Uint8Array(x.length)
  const scales: number[] = []
  for (let row = 0; row < x.length; row += hidden) {
    for (let begin = row; begin < row + hidden; begin += groupSize) {
      const end = Math.min(begin + groupSize, row + hidden)
      const { scale, apply } = scaleOf(largestMagnitude(Array.prototype.slice.call(x, begin, end)), rule)
      scales.push(scale)
      for (let i = begin; i < end; i++) values[i] = f32ToFp8E4m3(apply(x[i]!))
    }
  }
  return { values, scales: Float32Array.from(scales) }
}

/**
 * What `quantizePerTokenGroup` computes, from the definition.
 * @param x f32 numbers [M, H].
 * @returns e4m3 codes [M, H] and f32 scales [M, ceil(H / groupSize)]; see `packScales` for the packed form.
 */
export function quantizePerTokenGroup(
  x: ArrayLike<number>,
  options: {
    readonly hidden: number
    readonly groupSize: number
    readonly numerics: GroupNumerics
    /** Whether scales are rounded up to powers of two: the formats 'ue8m0' and 'ue8m0-packed'. */
    readonly powerOfTwo?: boolean
  },
): GroupCodes {
  const { hidden, groupSize, numerics, powerOfTwo = false } = options
  return quantizeGroups(x, { hidden, groupSize, rule: { kind: numerics, powerOfTwo } })
}

/** Numbers in the storage form of a float dtype, every NaN canonical. */
export function store(dtype: DequantizedDType, numbers: readonly number[]): StorageArray {
  if (dtype !== 'f32') return encode(dtype, numbers)
  // Written as bits: which NaN a float array stores is the engine's choice.
  return new Float32Array(Uint32Array.from(numbers, f32ToBits).buffer)
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
  return store(dtype, products)
}
