/** One stage of one pass on one rank. Times are microseconds on the machine's monotonic clock. */
export interface Span {
  readonly stage: string
  readonly beginUs: number
  readonly endUs: number
  readonly bytes: number
}

/** What a rank leaves behind. */
export interface RankResult {
  readonly rank: number
  readonly numTokens: number
  /** Rows that this rank sent to each rank in one pass. */
  readonly sentRows: readonly number[]
  /** How often this rank's tokens chose each expert. */
  readonly expertSelections: readonly number[]
  /** Spans of each measured pass. */
  readonly passes: readonly (readonly Span[])[]
  readonly maxRelError: number
  /** Whether all passes gave the same bits. */
  readonly deterministic: boolean
}

/** What a rank leaves when it failed. */
export interface RankFailure {
  readonly rank: number
  readonly error: { readonly code: string; readonly message: string }
}

/**
 * A rank's words as JSON. JSON has no infinity and would write null, which counts as zero: the error of an output with NaN, which
 * is infinite, becomes the largest number instead.
 */
export function encodeRankReport(report: RankResult | RankFailure): string {
  return JSON.stringify(report, (_key, value: unknown) =>
    typeof value === 'number' && !Number.isFinite(value) ? Number.MAX_VALUE : value,
  )
}
