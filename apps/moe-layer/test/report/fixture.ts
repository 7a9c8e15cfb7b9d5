import type { ReportData } from '../../src/report/report-data.js'
import type { RankResult, Span } from '../../src/results/rank-result.js'
import { summarizeStages } from '../../src/results/stage-summary.js'

export interface FixtureOptions {
  readonly ranks?: number
  readonly experts?: number
  readonly passes?: number
  readonly tokens?: number
  readonly model?: string
  readonly ok?: boolean
}

const stages = ['gate', 'exchange', 'dispatch', 'permute', 'experts', 'unpermute', 'combine']

/** A report's data by formula: every size is free and every run the same. */
export function reportFixture(options: FixtureOptions = {}): ReportData {
  const { ranks = 2, experts = 4, passes = 3, tokens = 128, model = 'demo', ok = true } = options
  const results = Array.from({ length: ranks }, (_, rank): RankResult => {
    const wave = (index: number): number => 1 + Math.sin(rank * 7.3 + index * 2.1) / 2
    return {
      rank,
      numTokens: tokens,
      sentRows: Array.from({ length: ranks }, (_, to) => Math.round(tokens * wave(to) * 0.4)),
      expertSelections: Array.from({ length: experts }, (_, expert) => Math.round((tokens * wave(expert)) / experts)),
      passes: Array.from({ length: passes }, (_, pass) => passSpans(pass, wave)),
      maxRelError: ok ? 5e-3 : 0.5,
      deterministic: true,
    }
  })
  const routes = results.flatMap(({ rank, sentRows }) =>
    sentRows.map((rows, to) => ({ from: rank, to, route: to === rank ? 'self' : 'peer', bytes: rows * 2048 })),
  )
  return {
    result: {
      ...{
        ok,
        device: 'cpu',
        expertsDevice: 'cpu',
        mode: 'ht',
        overlap: 1,
        graph: false,
        ranks,
        nodes: 1,
        model,
        dtype: 'bf16',
      },
      ...{ tokensPerRank: results.map(() => tokens), hidden: 1024, intermediate: 512, experts, topK: 1 },
      ...{ maxRelError: results[0]!.maxRelError, tolerance: 2e-2, deterministic: true },
      ...{ stages: summarizeStages(results), routes },
    },
    ranks: results,
    ...{ routing: 'uniform', seed: 1, workers: false, machine: 'a processor', createdAt: '2026-01-02T03:04:05.000Z' },
  }
}

/** The flow of one pass; later passes begin later and take longer. */
function passSpans(pass: number, wave: (index: number) => number): Span[] {
  const origin = 1e9 + pass * 1e6 + wave(pass) * 300
  let now = origin
  const spans = stages.map((stage, index): Span => {
    const beginUs = now + 40
    now = beginUs + (100 + 400 * wave(index) * (index % 2 === 0 ? 1 : 0.05)) * (1 + pass / 10)
    return { stage, beginUs, endUs: now, bytes: index * 100_000 }
  })
  return [...spans, { stage: 'layer', beginUs: origin, endUs: now, bytes: 0 }]
}
