import { type DType, decode, encode, Tensor } from '@moe-ep/core'
import { type ExpertWeights, referenceExpert } from '../src/index.js'
import { randomValues } from './random.js'

/** Sizes of a made-up layer on one rank. */
export interface Sizes {
  readonly hidden: number
  readonly intermediate: number
  readonly numExperts: number
}

export function rounded(dtype: DType, values: ArrayLike<number>): Float32Array {
  return decode(dtype, encode(dtype, values)) as Float32Array
}

/** Weights as tensors, and a plain function for one row through one expert, rounded to `outDtype`. */
export function madeUpExperts({ hidden, intermediate, numExperts }: Sizes, weightDtype: DType, outDtype: DType) {
  const w13 = rounded(weightDtype, randomValues(numExperts * 2 * intermediate * hidden, 2))
  const w2 = rounded(weightDtype, randomValues(numExperts * hidden * intermediate, 3))
  const weights: ExpertWeights = {
    w13: Tensor.from(w13, [numExperts, 2 * intermediate, hidden], weightDtype),
    w2: Tensor.from(w2, [numExperts, hidden, intermediate], weightDtype),
  }
  const row = (expert: number, x: Float32Array): Float32Array => {
    const size = 2 * intermediate * hidden
    return rounded(
      outDtype,
      referenceExpert({
        ...{ hidden, intermediate, x, w13: w13.subarray(expert * size, (expert + 1) * size) },
        w2: w2.subarray((expert * size) / 2, ((expert + 1) * size) / 2),
      }),
    )
  }
  return { weights, row }
}

/** The f32 sum of weight * row over a token's slots, rounded once. `ids` are local, -1 for none. */
export function weightedSum(
  x: Float32Array,
  slots: readonly { readonly id: number; readonly weight: number }[],
  { row, outDtype }: { readonly row: (expert: number, x: Float32Array) => Float32Array; readonly outDtype: DType },
): number[] {
  const sum = new Float32Array(x.length)
  for (const { id, weight } of slots) {
    if (id < 0) continue
    for (const [i, value] of row(id, x).entries()) sum[i] = sum[i]! + Math.fround(weight * value)
  }
  return Array.from(rounded(outDtype, sum))
}
