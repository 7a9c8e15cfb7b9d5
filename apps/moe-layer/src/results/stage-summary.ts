import type { RankResult, Span } from './rank-result.js'

/** One line of the stage table. */
export interface StageSummary {
  readonly name: string
  /** Median over passes of the slowest rank's time. */
  readonly medianUs: number
  readonly p99Us: number
  /** Bytes that the busiest rank reads and writes in one pass; 0 where they are not counted. */
  readonly bytes: number
  readonly gbPerSec: number
}

/** Order of the flow; `layer` is everything from the gate to the combined output. */
const stageOrder = [
  'gate',
  'quantize',
  'exchange',
  'dispatch',
  'receive',
  'permute',
  'experts',
  'unpermute',
  'combine',
  'reduce',
  'shared',
  'layer',
]

/** For each stage the slowest rank of every pass, then median and p99 over the passes. */
export function summarizeStages(results: readonly RankResult[]): StageSummary[] {
  const numPasses = Math.min(...results.map(({ passes }) => passes.length))
  return stageOrder.flatMap((name) => {
    /** Sums over the spans that one rank has of the stage: micro-batches have one each. */
    const ofRanks = (pass: number, valueOf: (span: Span) => number): number[] =>
      results.map(({ passes }) =>
        passes[pass]!.filter((span) => span.stage === name).reduce((sum, span) => sum + valueOf(span), 0),
      )
    const most = (valueOf: (span: Span) => number): number[] =>
      Array.from({ length: numPasses }, (_, pass) => Math.max(0, ...ofRanks(pass, valueOf)))
    const slowest = most(({ beginUs, endUs }) => endUs - beginUs)
    const bytes = Math.max(0, ...most((span) => span.bytes))
    const medianUs = percentile(slowest, 50)
    if (medianUs === 0) return []
    return { name, medianUs, p99Us: percentile(slowest, 99), bytes, gbPerSec: bytes / medianUs / 1000 }
  })
}

/** Nearest-rank percentile; 0 for no values. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? 0
}
