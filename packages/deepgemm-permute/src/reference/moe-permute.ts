import { permute, type ReferencePermuteOptions } from './permute.js'
import { computeAlignedM, localExpert } from './routing.js'
import { unpermuteAndReduce } from './unpermute.js'

/** What `moePermute` gives, in plain arrays. A row that is not written is undefined. */
export interface ReferenceMoePermuted<Row, ScaleRow = undefined> {
  readonly rows: (Row | undefined)[]
  readonly scales: (ScaleRow | undefined)[]
  readonly expertFirstTokenOffset: number[]
  readonly invPermutedIdx: number[]
  readonly mIndices: number[]
}

/** All slots sorted by expert, stably; foreign ones last, by global id, and after them those without an expert. */
export function moePermute<Row, ScaleRow = undefined>(
  x: readonly Row[],
  options: Omit<ReferencePermuteOptions<ScaleRow>, 'expertNumTokens' | 'fill' | 'capacity'> & {
    readonly topk: number
    readonly fillInvalidExpert?: number
  },
): ReferenceMoePermuted<Row, ScaleRow> {
  const { topkIdx, topk, alignment = 1, fillInvalidExpert = -1 } = options
  const numTokens = topkIdx.length
  const layout = permute<Row, ScaleRow>(x, { ...options, alignment, fill: 'expert' })
  const numLocalRows = layout.rows.length
  const numRows = numTokens === 0 ? 0 : computeAlignedM({ ...options, numTokens, topk, alignment })
  const behind = <T>(rows: readonly T[], value: T): T[] =>
    Array.from({ length: numRows }, (_, row) => (row < numLocalRows ? rows[row]! : value))

  const ids = topkIdx.flat()
  const invPermutedIdx = layout.inversePermutation.flat()
  const foreign = ids.map((_, slot) => slot).filter((slot) => localExpert(ids[slot]!, options) < 0)
  const key = (slot: number): number => (ids[slot] === -1 ? Infinity : ids[slot]!)
  const sorted = foreign.toSorted((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)))
  sorted.forEach((slot, rank) => (invPermutedIdx[slot] = numLocalRows + rank))
  return {
    rows: behind(layout.rows, undefined),
    scales: behind(layout.scales, undefined),
    expertFirstTokenOffset: [...layout.expertStart, numLocalRows],
    invPermutedIdx,
    mIndices: behind(layout.expertIds, fillInvalidExpert),
  }
}

/** Weighted sums in f32 over the slots whose row is below `numValidRows`, before the rounding to the output dtype. */
export function moeUnpermute(
  permutedRows: readonly (readonly number[])[],
  options: {
    readonly topkWeights: readonly (readonly number[])[]
    readonly invPermutedIdx: readonly number[]
    readonly numValidRows: number
    readonly hidden: number
  },
): number[][] {
  const { topkWeights, invPermutedIdx, numValidRows, hidden } = options
  let slot = 0
  const inversePermutation = topkWeights.map((weights) => weights.map(() => invPermutedIdx[slot++]!))
  const topkIdx = inversePermutation.map((rows) => rows.map((row) => (row < numValidRows ? 0 : -1)))
  return unpermuteAndReduce(permutedRows, { topkIdx, topkWeights, inversePermutation, hidden })
}
