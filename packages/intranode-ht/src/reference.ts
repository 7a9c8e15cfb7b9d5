/**
 * The same operations in plain TypeScript, for all ranks at once: the oracle. Rows are arrays of numbers, already rounded to the
 * dtype that they travel in.
 */
import { type DType, decode, encode } from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'

/** What one rank dispatches. */
export interface ReferenceInput {
  readonly x: readonly (readonly number[])[]
  readonly topkIdx: readonly (readonly number[])[]
  readonly topkWeights: readonly (readonly number[])[]
}

/** One received row. */
export interface ReferenceRow {
  readonly sourceRank: number
  readonly sourceToken: number
  readonly values: readonly number[]
  readonly topkIdx: readonly number[]
  readonly topkWeights: readonly number[]
}

/** Rows that each rank receives: by source rank, then by token. */
export function dispatch(inputs: readonly ReferenceInput[], numExperts: number): ReferenceRow[][] {
  const placement = linearPlacement(numExperts, inputs.length)
  return inputs.map((_, destination) => {
    const { begin, end } = placement.rangeOf(destination)
    const isLocal = (id: number): boolean => id >= begin && id < end
    return inputs.flatMap(({ x, topkIdx, topkWeights }, sourceRank) =>
      x.flatMap((values, sourceToken) => {
        const ids = topkIdx[sourceToken]!
        if (!ids.some(isLocal)) return []
        return {
          ...{ sourceRank, sourceToken, values },
          topkIdx: ids.map((id) => (isLocal(id) ? id - begin : -1)),
          topkWeights: topkWeights[sourceToken]!.map((weight, slot) => (isLocal(ids[slot]!) ? weight : 0)),
        }
      }),
    )
  })
}

/**
 * For each rank's tokens the sum over ranks of the rows that stand for them: f32 additions in rank order that begin with the first
 * row, one rounding to `dtype`; zeros for a token that went nowhere. `results[r][i]` belongs to `received[r][i]`.
 */
export function combine(
  received: readonly (readonly ReferenceRow[])[],
  results: readonly (readonly (readonly number[])[])[],
  shape: { readonly numTokens: readonly number[]; readonly hidden: number; readonly dtype: DType },
): number[][][] {
  return shape.numTokens.map((numTokens, home) =>
    Array.from({ length: numTokens }, (_, token) => {
      let sum: number[] | undefined
      received.forEach((rows, rank) => {
        rows.forEach((row, index) => {
          if (row.sourceRank !== home || row.sourceToken !== token) return
          const result = results[rank]![index]!
          sum = sum === undefined ? [...result] : sum.map((value, i) => Math.fround(value + result[i]!))
        })
      })
      return Array.from(decode(shape.dtype, encode(shape.dtype, sum ?? new Array<number>(shape.hidden).fill(0))))
    }),
  )
}
