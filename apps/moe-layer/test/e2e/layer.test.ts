import { spawnSync } from 'node:child_process'
import { describe, expect, it } from 'vitest'
import { requires } from '../../../../tooling/vitest/requirements.js'
import type { LayerResult } from '../../src/results/layer-result.js'
import { type AppEnd, device, jsonOf, mainPath, small, type StartOptions, useApp } from './app.js'

const app = useApp()

/** Runs the app, and expects that it is content. */
async function expectOk(args: readonly string[], options: StartOptions = {}): Promise<LayerResult> {
  const end: AppEnd = await app.run(args, options)
  const result = jsonOf(end)
  expect(result).toMatchObject({
    ok: true,
    device,
    mode: 'ht',
    dtype: 'bf16',
    deterministic: true,
    tolerance: 2e-2,
  })
  expect(end.exitCode).toBe(0)
  expect(end.stderr).toBe('')
  return result
}

/** Bytes that each rank receives. */
function receivedBytes({ ranks, routes }: LayerResult): number[] {
  const received = Array.from({ length: ranks }, () => 0)
  for (const { to, bytes } of routes) received[to]! += bytes
  return received
}

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0)

describe.each([1, 2, 3, 5, 7, 8].map((ranks, i) => [ranks, i] as const))('%d ranks', (ranks, i) => {
  it('uniform routing of two of 1, 7 and 512 tokens, and of top-k 1, 6 and 9', async () => {
    const [tokens, topks] = [[1, 7, 512] as const, [1, 6, 9] as const]
    for (const k of [i, i + 1]) {
      const topk = topks[k % 3]!
      const result = await expectOk(small({ ranks, topk, tokens: tokens[(k + ranks) % 3]! }))
      expect(result).toMatchObject({
        ranks,
        topK: topk,
        hidden: 64,
        intermediate: 32,
        experts: 16,
        nodes: 1,
        model: 'demo',
      })
      expect(result.maxRelError).toBeGreaterThan(0)
      expect(result.stages.map(({ name }) => name)).toEqual([
        ...['gate', 'exchange', 'dispatch', 'permute', 'experts', 'unpermute', 'combine', 'layer'],
      ])
      expect(result.routes).toHaveLength(ranks ** 2)
    }
  })

  it('skewed routing: rank 0 receives half', async () => {
    const result = await expectOk(small({ ranks, topk: 6, tokens: 64, routing: 'skewed' }))
    const received = receivedBytes(result)
    expect(received[0]! / total(received)).toBeCloseTo(ranks === 1 ? 1 : 0.5, 5)
  })

  it('hot routing: one rank receives everything', async () => {
    const hot = ranks - 1
    const result = await expectOk(small({ ranks, topk: 9, tokens: 7, routing: `hot:${hot}` }))
    const received = receivedBytes(result)
    expect(received[hot]).toBe(ranks * 7 * 64 * 2)
    expect(total(received)).toBe(received[hot])
  })
})

it.each([2, 3, 5, 7, 8])('empty routing on %d ranks: one rank receives nothing', async (ranks) => {
  const received = receivedBytes(await expectOk(small({ ranks, topk: 6, tokens: 16, routing: 'empty:1' })))
  expect(received.filter((bytes) => bytes === 0)).toHaveLength(1)
  expect(received[1]).toBe(0)
})

it.each([2, 3, 8])('fp8 rows on %d ranks, uniform and skewed routing', async (ranks) => {
  for (const routing of ['uniform', 'skewed']) {
    const end = await app.run([...small({ ranks, topk: 6, tokens: 32, routing }), '--hidden', '144', '--dtype', 'fp8'])
    const result = jsonOf(end) as LayerResult
    expect(result).toMatchObject({ ok: true, dtype: 'fp8', deterministic: true, tolerance: 6e-2 })
    // 144 bytes of values and two scales, the second of a short group.
    expect(result.routes.every(({ bytes }) => bytes % (144 + 8) === 0)).toBe(true)
    expect(result.maxRelError).toBeGreaterThan(0)
  }
})

describe('counts and sizes', () => {
  it('different counts for each rank, with zeros', async () => {
    const tokensPerRank = [0, 1, 7, 512, 0, 0, 64, 3]
    const result = await expectOk(small({ ranks: 8, topk: 6, tokens: tokensPerRank.join(',') }))
    expect(result.tokensPerRank).toEqual(tokensPerRank)
    const sent = tokensPerRank.map((_, rank) =>
      total(result.routes.filter(({ from }) => from === rank).map(({ bytes }) => bytes)),
    )
    expect(sent.map((bytes) => bytes > 0)).toEqual(tokensPerRank.map((count) => count > 0))
  })

  it('no tokens anywhere', async () => {
    expect((await expectOk(small({ ranks: 3, tokens: 0 }))).maxRelError).toBe(0)
  })

  it.each([13, 5])('%d experts on 8 ranks', async (experts) => {
    const result = await expectOk(small({ ranks: 8, experts, topk: 4, tokens: 64 }))
    const owners = receivedBytes(result).filter((bytes) => bytes > 0)
    expect(owners).toHaveLength(Math.min(experts, 8))
    await expectOk(small({ ranks: 8, experts, topk: experts, tokens: 3, routing: 'skewed' }))
  })

  it('hidden 2880', async () => {
    const result = await expectOk(small({ ranks: 8, hidden: 2880, experts: 13, topk: 6, tokens: 64 }))
    expect(result).toMatchObject({ hidden: 2880, experts: 13 })
  })
})

describe('the same layer', () => {
  const sizes = { ranks: 8, experts: 13, topk: 6, tokens: '33,0,7,1,64,5,0,12', iters: 3 }

  it('gives the same numbers again, with worker threads, and with another number of native threads', async () => {
    const first = await expectOk(small(sizes))
    const again = await expectOk(small(sizes))
    const workers = await expectOk([...small(sizes), '--workers'])
    const threads = await expectOk(small(sizes), { environment: { MOE_EP_CPU_THREADS: '3' } })
    for (const other of [again, workers, threads]) {
      expect(other.maxRelError).toBe(first.maxRelError)
      expect(other.routes).toEqual(first.routes)
    }
    const otherSeed = await expectOk(small({ ...sizes, seed: 2 }))
    expect(otherSeed.maxRelError).not.toBe(first.maxRelError)
  })

  it.each([
    ['processes', []],
    ['worker threads', ['--workers']],
  ] as const)('holds while garbage is collected between passes, with %s', async (_, flags) => {
    const args = [...small({ ...sizes, ranks: 3, tokens: 16, iters: 4 }), '--collect-garbage', ...flags]
    const { exitCode, stdout, stderr } = await app.run(args, { command: [process.execPath, '--trace-gc'] })
    expect(exitCode).toBe(0)
    expect((JSON.parse(stdout.split('\n').find((line) => line.startsWith('{'))!) as LayerResult).ok).toBe(true)
    // Node says of a collection that a program asked for that it is for testing: one a pass and rank.
    const collections = `${stdout}${stderr}`.split('\n').filter((line) => line.includes('testing'))
    expect(collections.length).toBeGreaterThanOrEqual(3 * 5)
  })

  const mountSmallShm = 'mount -t tmpfs -o size=64m tmpfs /dev/shm'
  const probeSmallShm = (): true | string => {
    const { status, stderr, error } = spawnSync('unshare', ['-m', 'sh', '-c', mountSmallShm], { encoding: 'utf8' })
    return status === 0 || (error?.message ?? stderr.trim())
  }

  it.skipIf(!requires('shm64', probeSmallShm))(
    'runs with a /dev/shm of 64 MB, in far more memory than that',
    async () => {
      const inSmallShm = `${mountSmallShm} && df -k --output=size /dev/shm >&2 && exec "$@"`
      const command = ['unshare', '-m', 'sh', '-c', inSmallShm, 'sh', process.execPath]
      const end = await app.run(small({ ranks: 8, hidden: 2880, experts: 13, tokens: 512 }), { command })
      expect(jsonOf(end).ok).toBe(true)
      expect(end.stderr.trim().split(/\s+/).at(-1)).toBe(String(64 * 1024))
    },
  )
})

it('the command that a package manager starts is the built file', () => {
  const { status, stdout } = spawnSync(process.execPath, [mainPath, '--help'], { encoding: 'utf8' })
  expect(status).toBe(0)
  for (const flag of [
    '--ranks',
    '--mode',
    '--overlap',
    '--graph',
    '--routing',
    '--tokens',
    '--json',
    '--trace',
    'make-weights',
  ])
    expect(stdout).toContain(flag)
})
