import { describe, expect, it } from 'vitest'
import { maxRelError } from '../../src/check/max-rel-error.js'
import { layerFlags, layerOptionsFrom } from '../../src/command/layer-options.js'
import type { RunSpec } from '../../src/layer/run-spec.js'
import { type LayerResult, summarizeLayer } from '../../src/results/layer-result.js'
import { encodeRankReport, type RankResult } from '../../src/results/rank-result.js'
import { percentile, summarizeStages } from '../../src/results/stage-summary.js'
import { terminalReport } from '../../src/results/terminal-table.js'

const defaults = Object.fromEntries(
  Object.entries(layerFlags).map(([name, flag]) => [name, 'default' in flag ? flag.default : undefined]),
)
const spec: RunSpec = {
  options: layerOptionsFrom({ ...defaults, ranks: '2', tokens: '3,0' }),
  shape: { hidden: 8, intermediate: 4, experts: 2, topk: 1 },
  weights: 'weights.safetensors',
  results: 'results',
}

function rankResult(rank: number, wrong: Partial<RankResult> = {}): RankResult {
  const passes = [[{ stage: 'layer', beginUs: 100, endUs: 150, bytes: 0 }]]
  return {
    rank,
    numTokens: 3,
    sentRows: [1, 2],
    expertSelections: [2, 1],
    passes,
    maxRelError: 1e-3,
    deterministic: true,
    ...wrong,
  }
}

/** The verdict when the second rank's report is this one, on the way that reports take: through JSON. */
function verdictWith(wrong: Partial<RankResult>): LayerResult {
  const reports = [rankResult(0), rankResult(1, wrong)].map(
    (report) => JSON.parse(encodeRankReport(report)) as RankResult,
  )
  return summarizeLayer(spec, reports)
}

const reference = Float32Array.of(1, -4, 2)

describe('the verdict', () => {
  it('is ok when all ranks are within the tolerance', () => {
    expect(verdictWith({ maxRelError: 2e-2 })).toMatchObject({
      ok: true,
      maxRelError: 2e-2,
      tolerance: 2e-2,
      deterministic: true,
    })
  })

  it.each<[string, Float32Array]>([
    ['is all zeros', new Float32Array(3)],
    ['has a NaN', Float32Array.of(1, NaN, 2)],
    ['has an infinity', Float32Array.of(1, -4, -Infinity)],
    ['has one row too far off', Float32Array.of(1, -4, 2.1)],
    ['has rows in the wrong order', Float32Array.of(2, -4, 1)],
  ])('is not ok when one rank has an output that %s', (_, output) => {
    const result = verdictWith({ maxRelError: maxRelError(output, reference) })
    expect(result.ok).toBe(false)
    expect(result.maxRelError).toBeGreaterThan(result.tolerance)
    expect((JSON.parse(JSON.stringify(result)) as LayerResult).maxRelError).toBe(result.maxRelError)
    expect(terminalReport(result)).toContain('FAILED')
  })

  it('is not ok when passes differ, however small the error', () => {
    const result = verdictWith({ maxRelError: 0, deterministic: false })
    expect(result).toMatchObject({ ok: false, deterministic: false })
    expect(terminalReport(result)).toContain('passes DIFFER')
  })
})

it('a run on GPUs says that its experts computed on the host, to people and to programs; a run without does not', () => {
  const hint = 'experts compute on the host: their rows go there and back'
  const [onCpu, onCuda] = (['cpu', 'cuda'] as const).map((device) =>
    summarizeLayer({ ...spec, options: { ...spec.options, device } }, [rankResult(0), rankResult(1)]),
  )
  expect(terminalReport(onCuda!).split('\n')).toContain(hint)
  expect(JSON.parse(JSON.stringify(onCuda))).toMatchObject({ device: 'cuda', expertsDevice: 'cpu' })
  expect(terminalReport(onCpu!)).not.toContain(hint)
  expect(JSON.parse(JSON.stringify(onCpu))).toMatchObject({ device: 'cpu', expertsDevice: 'cpu' })
})

it('routes hold the bytes of each pair of ranks', () => {
  expect(verdictWith({ sentRows: [0, 5] }).routes).toEqual([
    { from: 0, to: 0, route: 'self', bytes: 16 },
    { from: 0, to: 1, route: 'peer', bytes: 32 },
    { from: 1, to: 0, route: 'peer', bytes: 0 },
    { from: 1, to: 1, route: 'self', bytes: 80 },
  ])
})

describe('stages', () => {
  const span = (stage: string, us: number, bytes = 0) => ({ stage, beginUs: 1000, endUs: 1000 + us, bytes })

  it('are the slowest rank of each pass, then the median and p99 over passes, in the order of the flow', () => {
    const results = [
      rankResult(0, {
        passes: [
          [span('combine', 10, 4000), span('gate', 5)],
          [span('combine', 40), span('gate', 5)],
          [span('combine', 1)],
        ],
      }),
      rankResult(1, {
        passes: [[span('combine', 20, 8000)], [span('combine', 30)], [span('combine', 2), span('gate', 7)]],
      }),
    ]
    expect(summarizeStages(results)).toEqual([
      { name: 'gate', medianUs: 5, p99Us: 7, bytes: 0, gbPerSec: 0 },
      { name: 'combine', medianUs: 20, p99Us: 40, bytes: 8000, gbPerSec: 0.4 },
    ])
  })

  it('are the sum over the spans that a rank has in a pass, one for each micro-batch', () => {
    const results = [
      rankResult(0, { passes: [[span('combine', 10, 100), span('combine', 15, 200)]] }),
      rankResult(1, { passes: [[span('combine', 20, 250)]] }),
    ]
    expect(summarizeStages(results)).toEqual([
      { name: 'combine', medianUs: 25, p99Us: 25, bytes: 300, gbPerSec: 300 / 25 / 1000 },
    ])
  })

  it('percentiles are nearest ranks', () => {
    const values = Array.from({ length: 100 }, (_, i) => 100 - i)
    expect([50, 99, 100].map((percent) => percentile(values, percent))).toEqual([50, 99, 100])
    expect([percentile([3], 50), percentile([], 50)]).toEqual([3, 0])
  })
})
