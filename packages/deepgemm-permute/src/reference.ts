/**
 * The same operations in plain TypeScript: the oracle. Slow, obvious, complete. Matrices are arrays of rows.
 */
import { argumentError } from '@moe-ep/core'

type Ids = readonly (readonly number[])[]

/** Which slots are local: without a map every id but -1 is. */
export interface LocalExpertOptions {
  readonly numLocalExperts: number
  readonly expertMap?: ArrayLike<number>
}

/** Slots of every local expert. */
export function countExpertNumTokens(topkIdx: Ids, options: LocalExpertOptions): Int32Array {
  const slots = topkIdx.flat().map((id) => localExpert(id, options))
  return Int32Array.from(
    { length: options.numLocalExperts },
    (_, expert) => slots.filter((slot) => slot === expert).length,
  )
}

/** Rows with padding: exact where the counts are known, else a bound. */
export function computeAlignedM(options: {
  readonly numTokens: number
  readonly topk: number
  readonly numLocalExperts: number
  readonly alignment?: number
  readonly expertNumTokens?: ArrayLike<number>
}): number {
  const { numTokens, topk, numLocalExperts, alignment = 128, expertNumTokens } = options
  if (expertNumTokens === undefined) return roundUp(numTokens * topk + numLocalExperts * (alignment - 1), alignment)
  return Array.from(expertNumTokens).reduce((sum, count) => sum + roundUp(count, alignment), 0)
}

/** What `permute` gives, in plain arrays. A padding row, which is not written, is undefined. */
export interface ReferencePermuted<Row, ScaleRow = undefined> {
  readonly rows: (Row | undefined)[]
  readonly scales: (ScaleRow | undefined)[]
  readonly expertIds: number[]
  readonly inversePermutation: number[][]
  readonly expertStart: number[]
  readonly expertNumTokens: Int32Array
}

export interface ReferencePermuteOptions<ScaleRow = undefined> extends LocalExpertOptions {
  readonly topkIdx: Ids
  readonly scales?: readonly ScaleRow[]
  /** Rows to keep for each expert. */
  readonly expertNumTokens?: ArrayLike<number>
  readonly alignment?: number
  readonly fill?: -1 | 'expert'
  /** Rows of the output, when more than needed. */
  readonly capacity?: number
}

/** The contiguous layout: expert after expert, rows by token and slot, each expert's rows padded to the alignment. */
export function permute<Row, ScaleRow = undefined>(
  x: readonly Row[],
  options: ReferencePermuteOptions<ScaleRow>,
): ReferencePermuted<Row, ScaleRow> {
  const { topkIdx, scales, numLocalExperts, alignment = 128, fill = -1, capacity = 0 } = options
  const expertNumTokens = countExpertNumTokens(topkIdx, options)
  const result: ReferencePermuted<Row, ScaleRow> = {
    rows: [],
    scales: [],
    expertIds: [],
    inversePermutation: topkIdx.map((ids) => ids.map(() => -1)),
    expertStart: [],
    expertNumTokens,
  }
  const append = (expertId: number, row?: Row, scaleRow?: ScaleRow): number => {
    result.scales.push(scaleRow)
    result.expertIds.push(expertId)
    return result.rows.push(row) - 1
  }
  for (let expert = 0; expert < numLocalExperts; expert++) {
    const start = result.rows.length
    result.expertStart.push(start)
    topkIdx.forEach((ids, token) =>
      ids.forEach((id, slot) => {
        if (localExpert(id, options) !== expert) return
        result.inversePermutation[token]![slot] = append(expert, x[token], scales?.[token])
      }),
    )
    const reserved = options.expertNumTokens?.[expert] ?? expertNumTokens[expert]!
    while (result.rows.length < start + roundUp(reserved, alignment)) append(fill === 'expert' ? expert : -1)
  }
  while (result.rows.length < capacity) append(fill === 'expert' ? 0 : -1)
  return result
}

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

/** Local id, or -1 for a slot that is skipped. */
function localExpert(id: number, { numLocalExperts, expertMap }: LocalExpertOptions): number {
  if (id === -1) return -1
  const numGlobal = expertMap?.length ?? numLocalExperts
  if (id < 0 || id >= numGlobal) throw argumentError('topkIdx', `-1 or an expert below ${numGlobal}`, id)
  const local = expertMap?.[id] ?? id
  if (local < -1 || local >= numLocalExperts)
    throw argumentError('expertMap', `-1 or a local expert below ${numLocalExperts}`, local)
  return local
}

function roundUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment
}
