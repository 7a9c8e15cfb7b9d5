import { readFile } from 'node:fs/promises'
import { describe, expect, it } from 'vitest'
import type { LayerResult } from '../../src/results/layer-result.js'
import { device, jsonOf, small, type StartOptions, useApp } from './app.js'

const app = useApp()
const stages = ['gate', 'dispatch', 'experts', 'combine', 'layer']
const stagesInHalves = ['gate', 'dispatch', 'receive', 'experts', 'combine', 'reduce', 'layer']

/** Runs the app in mode ll, and expects that it is content. */
async function expectOk(
  sizes: Readonly<Record<string, string | number>>,
  flags: readonly string[] = [],
  options: StartOptions = {},
): Promise<LayerResult> {
  const end = await app.run([...small(sizes), '--mode', 'll', ...flags], options)
  const result = jsonOf(end)
  const protocol = flags.includes('expert') ? 'expert' : 'rank'
  expect(result).toMatchObject({ ok: true, device, mode: 'll', protocol, deterministic: true })
  expect(result.tolerance).toBe(result.dtype === 'fp8' ? 6e-2 : 2e-2)
  expect([end.exitCode, end.stderr]).toEqual([0, ''])
  return result
}

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0)

/** Bytes that each rank receives. */
function receivedBytes({ ranks, routes }: LayerResult): number[] {
  return Array.from({ length: ranks }, (_, rank) =>
    total(routes.filter(({ to }) => to === rank).map(({ bytes }) => bytes)),
  )
}

describe.each([1, 2, 3, 5, 8].map((ranks, i) => [ranks, i] as const))('%d ranks', (ranks, i) => {
  it('uniform routing: the stages of the flow, and the error of the high-throughput layer', async () => {
    const cases = [
      [1, 7],
      [6, 128],
      [9, 1],
    ] as const
    for (const [topk, tokens] of [cases[i % 3]!, cases[(i + 1) % 3]!]) {
      const sizes = { ranks, topk, tokens }
      const result = await expectOk(sizes)
      expect(result.stages.map(({ name }) => name)).toEqual(stages)
      expect(result).toMatchObject({ overlap: 1, graph: false, topK: topk })
      // Ranks sum alike in both families, so the outputs are the same, and so is what travels.
      const { maxRelError, routes } = jsonOf(await app.run(small(sizes)))
      expect([result.maxRelError, result.routes]).toEqual([maxRelError, routes])
      expect(maxRelError).toBeGreaterThan(0)
    }
  })

  it('skewed and hot routing, one of them in bf16 and one in fp8', async () => {
    const dtypes = ['bf16', 'fp8'] as const
    const [dtype, other] = [dtypes[i % 2]!, dtypes[(i + 1) % 2]!]
    const skewed = await expectOk({ ranks, topk: 6, tokens: 64, routing: 'skewed', hidden: 144, dtype: other })
    const received = receivedBytes(skewed)
    expect(received[0]! / total(received)).toBeCloseTo(ranks === 1 ? 1 : 0.5, 5)
    const routing = `hot:${ranks - 1}`
    const hot = receivedBytes(
      await expectOk({ ranks, topk: 9, tokens: 7, routing, hidden: 144, intermediate: 64, dtype }),
    )
    // 144 values, of fp8 with two scales, the second of a short group.
    expect(hot[ranks - 1]).toBe(ranks * 7 * (dtype === 'fp8' ? 144 + 8 : 288))
    expect(total(hot)).toBe(hot[ranks - 1])
  })
})

it.each([2, 3, 8])('empty routing on %d ranks: one rank receives nothing', async (ranks) => {
  const received = receivedBytes(await expectOk({ ranks, topk: 6, tokens: 16, routing: 'empty:1' }))
  expect(received.filter((bytes) => bytes === 0)).toHaveLength(1)
  expect(received[1]).toBe(0)
})

describe('counts and sizes', () => {
  it.each(['bf16', 'fp8'])(
    '%s: different counts for each rank, with zeros and the most there can be',
    async (dtype) => {
      const tokensPerRank = [0, 1, 7, 1024, 0, 0, 64, 3]
      const result = await expectOk({ ranks: 8, topk: 6, tokens: tokensPerRank.join(','), dtype })
      expect(result.tokensPerRank).toEqual(tokensPerRank)
      const sent = tokensPerRank.map((_, rank) =>
        total(result.routes.filter(({ from }) => from === rank).map(({ bytes }) => bytes)),
      )
      expect(sent.map((bytes) => bytes > 0)).toEqual(tokensPerRank.map((count) => count > 0))
    },
  )

  it('no tokens anywhere', async () => {
    expect((await expectOk({ ranks: 3, tokens: 0 })).maxRelError).toBe(0)
  })

  it.each([13, 5])('%d experts on 8 ranks', async (experts) => {
    const received = receivedBytes(await expectOk({ ranks: 8, experts, topk: 4, tokens: 64 }))
    expect(received.filter((bytes) => bytes > 0)).toHaveLength(Math.min(experts, 8))
  })

  it('hidden 2880', async () => {
    await expectOk({ ranks: 3, hidden: 2880, tokens: '5,0,9' })
    await expectOk({ ranks: 3, hidden: 2880, tokens: '5,0,9', dtype: 'fp8' })
  })

  it('a model with a shared expert', async () => {
    const result = await expectOk({ ranks: 3, hidden: 128, experts: 32, tokens: '9,0,4', model: 'deepseek-v3' })
    expect(result.stages.map(({ name }) => name)).toEqual([...stages.slice(0, -1), 'shared', 'layer'])
  })
})

describe.each([1, 3, 8])('a row for each expert, %d ranks', (ranks) => {
  it('is near the dense computation, also skewed and without tokens, and of fewer ranks hot', async () => {
    const expert = ['--protocol', 'expert']
    const tokens = ['40', '40,0,3', '40,0,1,7,0,64,3,9'][[1, 3, 8].indexOf(ranks)]!
    const cases = [
      ['skewed', 'fp8'],
      ['uniform', 'bf16', '--graph'],
      [`hot:${ranks - 1}`, 'bf16', '--overlap', '2'],
    ] as const
    for (const [routing, dtype, ...flags] of cases.slice(0, ranks === 8 ? 1 : 3)) {
      const sizes = { ranks, topk: 6, tokens, hidden: 144, intermediate: 64, routing, dtype }
      const result = await expectOk(sizes, [...expert, ...flags])
      const rowBytes = dtype === 'fp8' ? 144 + 8 : 288
      const bytes = total(receivedBytes(result))
      // Every selection is a row of its own; a hot rank has fewer experts than a token has slots.
      if (routing === 'uniform') expect(bytes).toBe(total(result.tokensPerRank) * 6 * rowBytes)
      const once = await expectOk(sizes, flags)
      expect(bytes).toBeGreaterThan(total(receivedBytes(once)))
      for (const [i, route] of result.routes.entries()) {
        expect(route.bytes % rowBytes).toBe(0)
        expect(route.bytes).toBeGreaterThanOrEqual(once.routes[i]!.bytes)
      }
    }
  })
})

describe('graphs', () => {
  it.each(['bf16', 'fp8'])('%s: the bits of ordinary calls, and times of every pass', async (dtype) => {
    const sizes = { ranks: 3, tokens: '33,0,5', iters: 4, dtype }
    const plain = await expectOk(sizes)
    const path = app.path(`graph-${dtype}.json`)
    const graph = await expectOk(sizes, ['--graph', '--trace', path])
    expect(graph).toMatchObject({ graph: true, maxRelError: plain.maxRelError })
    expect(graph.stages.map(({ name }) => name)).toEqual(stages)
    const { traceEvents } = JSON.parse(await readFile(path, 'utf8')) as { traceEvents: TraceEvent[] }
    const spans = traceEvents.filter(({ ph }) => ph === 'X')
    for (let rank = 0; rank < 3; rank++) {
      for (let pass = 0; pass < 4; pass++) {
        const ofPass = spans.filter((span) => span.pid === rank && span.args.pass === pass)
        expect(new Set(ofPass.map(({ name }) => name))).toEqual(new Set(stages))
        const layer = ofPass.find(({ name }) => name === 'layer')!
        for (const { ts, dur } of ofPass) {
          expect(ts).toBeGreaterThanOrEqual(layer.ts)
          expect(ts + dur).toBeLessThanOrEqual(layer.ts + layer.dur)
        }
      }
    }
  })
})

interface TraceEvent {
  readonly name: string
  readonly ph: string
  readonly pid: number
  readonly ts: number
  readonly dur: number
  readonly args: { readonly pass?: number }
}

describe.each(['ll', 'ht'])('micro-batches, mode %s', (mode) => {
  it.each(['bf16', 'fp8'])('%s: two and three give the bits of one, also where some have no tokens', async (dtype) => {
    const args = [...small({ ranks: 3, tokens: '40,0,1', iters: 2, dtype }), '--mode', mode]
    const one = jsonOf(await app.run(args))
    expect(one).toMatchObject({ ok: true, overlap: 1 })
    for (const overlap of [2, 3]) {
      const several = jsonOf(await app.run([...args, '--overlap', String(overlap)]))
      expect(several).toMatchObject({ ok: true, mode, overlap, deterministic: true, maxRelError: one.maxRelError })
      if (mode === 'll') expect(several.stages.map(({ name }) => name)).toEqual(stagesInHalves)
      else expect(several.stages.map(({ name }) => name)).toEqual(one.stages.map(({ name }) => name))
      expect(several.routes).toEqual(one.routes)
    }
  })
})

it('more than 1024 tokens go through in micro-batches', async () => {
  const result = await expectOk({ ranks: 2, tokens: '2048,3', topk: 2 }, ['--overlap', '2'])
  expect(result.tokensPerRank).toEqual([2048, 3])
})

it('does not change with runs, workers, the number of native threads or collected garbage', async () => {
  const sizes = { ranks: 5, topk: 6, tokens: '40,0,1,64,7', iters: 2 }
  const first = await expectOk(sizes)
  for (const other of [
    await expectOk(sizes, ['--workers']),
    await expectOk(sizes, [], { environment: { MOE_EP_CPU_THREADS: '3' } }),
    await expectOk(sizes, ['--collect-garbage']),
    await expectOk(sizes, ['--protocol', 'rank']),
  ]) {
    expect(other.maxRelError).toBe(first.maxRelError)
    expect(other.routes).toEqual(first.routes)
  }
})

it('a table for people says how rows were moved', async () => {
  const args = small({ ranks: 2, tokens: 9 }).filter((flag) => flag !== '--json')
  const { exitCode, stdout } = await app.run([...args, '--mode', 'll', '--graph'])
  expect(exitCode).toBe(0)
  expect(stdout).toContain('9 tokens a rank, mode ll, protocol rank, dispatch and combine as graphs')
  for (const stage of stages) expect(stdout).toMatch(new RegExp(`^${stage} +\\d+ +\\d+`, 'm'))
})
