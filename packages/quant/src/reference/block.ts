import { f32ToFp8E4m3, fp8E4m3ToF32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import { type GroupCodes, store } from './group.js'
import { largestMagnitude, powerOfTwoNotBelow } from './scale-rules.js'

/** One matrix [N, K] and its blocks. */
interface BlockedMatrix {
  readonly columns: number
  readonly blockShape: readonly [number, number]
}

/** The block, in row-major order, that element i of a matrix lies in. */
const blockOf = (i: number, { columns, blockShape }: BlockedMatrix): number =>
  Math.floor(Math.floor(i / columns) / blockShape[0]) * Math.ceil(columns / blockShape[1]) +
  Math.floor((i % columns) / blockShape[1])

/**
 * What `quantizeBlock` computes for one matrix, from the definition.
 * @param weight f32 numbers [N, K].
 * @returns e4m3 codes [N, K] and f32 scales [ceil(N / rows), ceil(K / columns)].
 */
export function quantizeBlock(
  weight: ArrayLike<number>,
  options: BlockedMatrix & { readonly powerOfTwo?: boolean },
): GroupCodes {
  const blocks: number[][] = []
  for (let i = 0; i < weight.length; i++) (blocks[blockOf(i, options)] ??= []).push(weight[i]!)
  const scales = blocks.map((block) => {
    const scale = Math.fround(Math.max(Math.fround(1e-4), largestMagnitude(block)) / 448)
    return options.powerOfTwo === true ? powerOfTwoNotBelow(scale) : scale
  })
  const reciprocals = scales.map((scale) => Math.fround(1 / scale))
  const values = Uint8Array.from(weight, (x, i) => f32ToFp8E4m3(Math.fround(x * reciprocals[blockOf(i, options)]!)))
  return { values, scales: Float32Array.from(scales) }
}

/**
 * What `dequantizeBlock` computes for one matrix, from the definition.
 * @returns elements [N, K] in the storage form of `dtype`.
 */
export function dequantizeBlock(
  values: ArrayLike<number>,
  scales: ArrayLike<number>,
  options: BlockedMatrix & { readonly dtype: DequantizedDType },
): StorageArray {
  const products = Array.from(values, (code, i) => Math.fround(fp8E4m3ToF32(code) * scales[blockOf(i, options)]!))
  return store(options.dtype, products)
}
