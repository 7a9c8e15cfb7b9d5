import { countExpertNumTokens, type Ids, localExpert, type LocalExpertOptions } from './routing.js'

/** What `permuteMasked` gives, in plain arrays. A padding row, which is not written, is undefined. */
export interface ReferencePermutedMasked<Row, ScaleRow = undefined> {
  /** [experts][maxTokens] */
  readonly rows: (Row | undefined)[][]
  readonly scales: (ScaleRow | undefined)[][]
  readonly maskedM: Int32Array
  readonly inversePermutation: number[][]
}

/** The masked layout: every expert's rows by token and slot, from the front of its batch. */
export function permuteMasked<Row, ScaleRow = undefined>(
  x: readonly Row[],
  options: LocalExpertOptions & {
    readonly topkIdx: Ids
    readonly maxTokens: number
    readonly scales?: readonly ScaleRow[]
  },
): ReferencePermutedMasked<Row, ScaleRow> {
  const { topkIdx, scales, numLocalExperts, maxTokens } = options
  const filled = Array.from({ length: numLocalExperts }, (): number[] => [])
  const inversePermutation = topkIdx.map((ids, token) =>
    ids.map((id) => {
      const expert = localExpert(id, options)
      return expert < 0 ? -1 : expert * maxTokens + filled[expert]!.push(token) - 1
    }),
  )
  const batch = <T>(source: readonly T[] | undefined, tokens: readonly number[]): (T | undefined)[] =>
    Array.from({ length: maxTokens }, (_, position) => source?.[tokens[position]!])
  return {
    rows: filled.map((tokens) => batch(x, tokens)),
    scales: filled.map((tokens) => batch(scales, tokens)),
    maskedM: countExpertNumTokens(topkIdx, options),
    inversePermutation,
  }
}
