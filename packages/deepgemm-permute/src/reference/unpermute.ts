import { argumentError } from '@moe-ep/core'
import { type Ids, localExpert } from './routing.js'

/** Weighted sums in f32, before the rounding to the output dtype. */
export function unpermuteAndReduce(
  expertRows: readonly (readonly number[])[],
  options: {
    readonly topkIdx: Ids
    readonly topkWeights: readonly (readonly number[])[]
    readonly inversePermutation: readonly (readonly number[])[]
    readonly expertMap?: ArrayLike<number>
    readonly hidden: number
  },
): number[][] {
  const { topkIdx, topkWeights, inversePermutation, expertMap, hidden } = options
  return topkIdx.map((ids, token) => {
    const sum = Array<number>(hidden).fill(0)
    ids.forEach((id, slot) => {
      if (localExpert(id, { numLocalExperts: Infinity, ...(expertMap && { expertMap }) }) < 0) return
      const row = expertRows[inversePermutation[token]![slot]!]
      if (row === undefined) throw argumentError('inversePermutation', 'a row', inversePermutation[token]![slot])
      const weight = Math.fround(topkWeights[token]![slot]!)
      for (let column = 0; column < hidden; column++) {
        // The product and the sum of two f32 are rounded as if computed exactly: doubles hold enough bits for it.
        sum[column] = Math.fround(sum[column]! + Math.fround(weight * row[column]!))
      }
    })
    return sum
  })
}
