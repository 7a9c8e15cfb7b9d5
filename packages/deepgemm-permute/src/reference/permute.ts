import { countExpertNumTokens, type Ids, localExpert, type LocalExpertOptions, roundUp } from './routing.js'

/** What `permute` gives, in plain arrays. A padding row, which is not written, is undefined. */
export interface ReferencePermuted<Row, ScaleRow = undefined> {
  readonly rows: (Row | undefined)[]
  readonly scales: (ScaleRow | undefined)[]
  readonly expertIds: number[]
  readonly inversePermutation: number[][]
  readonly expertStart: number[]
  readonly expertEnd: number[]
  readonly expertNumTokens: Int32Array
}

export interface ReferencePermuteOptions<ScaleRow = undefined> extends LocalExpertOptions {
  readonly topkIdx: Ids
  readonly scales?: readonly ScaleRow[]
  /** Rows to keep for each expert. */
  readonly expertNumTokens?: ArrayLike<number>
  readonly alignment?: number
  /** 'tile' is as 'expert': new memory is zero. */
  readonly fill?: -1 | 'expert' | 'tile'
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
    expertEnd: [],
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
    result.expertEnd.push(result.rows.length)
    const reserved = options.expertNumTokens?.[expert] ?? expertNumTokens[expert]!
    while (result.rows.length < start + roundUp(reserved, alignment)) append(fill === -1 ? -1 : expert)
  }
  while (result.rows.length < capacity) append(fill === -1 ? -1 : 0)
  return result
}
