/**
 * The same operations in plain TypeScript, for all ranks at once: the oracle. Rows are arrays of numbers, bf16 values already; what
 * they become on their way {@link castRow} says.
 */
import { decode, encode } from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'
import { throughLogFmt } from './reference-formats.js'

export * from './reference-formats.js'

/** What one rank dispatches: [T][topk] each. */
export interface ReferenceInput {
  readonly topkIdx: readonly (readonly number[])[]
  readonly topkWeights: readonly (readonly number[])[]
}

/** One row that an expert receives. */
export interface ReferenceRow {
  readonly sourceRank: number
  readonly sourceToken: number
}

/** Rows of every local expert of every rank, by source rank, then by token: [rank][local expert][row]. */
export function dispatch(inputs: readonly ReferenceInput[], numExperts: number): ReferenceRow[][][] {
  const placement = linearPlacement(numExperts, inputs.length)
  return inputs.map((_, rank) => {
    const { begin, end } = placement.rangeOf(rank)
    return Array.from({ length: end - begin }, (_, local) =>
      inputs.flatMap(({ topkIdx }, sourceRank) =>
        topkIdx.flatMap((ids, sourceToken) => (ids.includes(begin + local) ? [{ sourceRank, sourceToken }] : [])),
      ),
    )
  })
}

/**
 * The rows of every rank's tokens, from what experts made of the received ones: `results[rank][local expert][row]`.
 * `weighted`: weights came with the dispatch, so that each rank sums first. `useLogfmt`: rows come home as LogFMT-10.
 */
export function combine(
  inputs: readonly ReferenceInput[],
  results: readonly (readonly (readonly (readonly number[])[])[])[],
  options: {
    readonly numExperts: number
    readonly hidden: number
    readonly weighted: boolean
    readonly useLogfmt?: boolean
  },
): number[][][] {
  const { numExperts, hidden, weighted, useLogfmt = false } = options
  const home = (row: readonly number[]): readonly number[] => (useLogfmt ? throughLogFmt(row) : row)
  const received = dispatch(inputs, numExperts)
  const placement = linearPlacement(numExperts, inputs.length)
  return inputs.map(({ topkIdx, topkWeights }, source) =>
    topkIdx.map((ids, token) => {
      const terms = ids.flatMap((id, slot) => {
        if (id < 0) return []
        const rank = placement.rankOf(id)
        const local = id - placement.rangeOf(rank).begin
        const row = received[rank]![local]!.findIndex((r) => r.sourceRank === source && r.sourceToken === token)
        const weight = topkWeights[token]![slot]!
        const result = results[rank]![local]![row]!
        // Where ranks sum first, that is what comes home.
        const sent = weighted ? result : home(result)
        return { rank, values: sent.map((value) => Math.fround(value * weight)) }
      })
      if (!weighted)
        return toBf16(
          sum(
            terms.map(({ values }) => values),
            hidden,
          ),
        )
      const ranks = [...new Set(terms.map(({ rank }) => rank))].sort((a, b) => a - b)
      const partial = ranks.map((rank) =>
        home(
          toBf16(
            sum(
              terms.filter((term) => term.rank === rank).map(({ values }) => values),
              hidden,
            ),
          ),
        ),
      )
      return toBf16(sum(partial, hidden))
    }),
  )
}

/** One row of a rank-major dispatch. */
export interface RankMajorRow {
  readonly sourceToken: number
  /** Local ids, -1 for experts elsewhere. */
  readonly topkIdx: readonly number[]
  readonly topkWeights: readonly number[]
}

/** Rows by source rank, then by token: [rank][source][row]. */
export function dispatchRankMajor(inputs: readonly ReferenceInput[], numExperts: number): RankMajorRow[][][] {
  const placement = linearPlacement(numExperts, inputs.length)
  return inputs.map((_, rank) => {
    const { begin, end } = placement.rangeOf(rank)
    return inputs.map(({ topkIdx, topkWeights }) =>
      topkIdx.flatMap((ids, sourceToken) => {
        const local = ids.map((id) => (id >= begin && id < end ? id - begin : -1))
        if (local.every((id) => id < 0)) return []
        const weights = topkWeights[sourceToken]!.map((weight, slot) => (local[slot]! < 0 ? 0 : weight))
        return [{ sourceToken, topkIdx: local, topkWeights: weights }]
      }),
    )
  })
}

/** For every token the sum, in rank order, of the rows that ranks answer with: `results[rank][source][row]`. */
export function combineRankMajor(
  inputs: readonly ReferenceInput[],
  results: readonly (readonly (readonly (readonly number[])[])[])[],
  options: { readonly numExperts: number; readonly hidden: number; readonly useLogfmt?: boolean },
): number[][][] {
  const received = dispatchRankMajor(inputs, options.numExperts)
  return inputs.map(({ topkIdx }, home) =>
    topkIdx.map((_, token) => {
      const rows = received.flatMap((sources, rank) => {
        const row = sources[home]!.findIndex(({ sourceToken }) => sourceToken === token)
        if (row < 0) return []
        const result = results[rank]![home]![row]!
        return [options.useLogfmt === true ? throughLogFmt(result) : result]
      })
      return toBf16(sum(rows, options.hidden))
    }),
  )
}

/** f32 additions in order; the first row starts the sum, zeros where there is none. */
function sum(rows: readonly (readonly number[])[], hidden: number): number[] {
  const [first, ...others] = rows
  if (first === undefined) return new Array<number>(hidden).fill(0)
  return others.reduce<number[]>((total, row) => total.map((value, i) => Math.fround(value + row[i]!)), [...first])
}

function toBf16(values: readonly number[]): number[] {
  return Array.from(decode('bf16', encode('bf16', values)))
}
