import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { pushOnSameSms } from '../src/measure/ceiling-names.js'
import { measureCases } from '../src/measure/measure-cases.js'
import { callsOf, lastLevelCacheBytes, oppositeSet, rotatingSets, setsOf } from '../src/measure/rotation.js'
import { stepCase } from '../src/measure/step-case.js'
import type { BenchContext } from '../src/operations/operation.js'
import { summarizeOperation } from '../src/results/bench-result.js'
import { tableLines } from '../src/results/terminal-table.js'
import { standIn } from './stand-in.js'
import type { RankMeasurement } from '../src/results/rank-measurement.js'

describe('measureCases', () => {
  it('prepares blocks, takes turns, and leaves out the warm-up', async () => {
    const calls: string[] = []
    const caseOf = (name: string) => ({
      ...{ name, sets: 1 },
      async prepare(iteration: number) {
        calls.push(`prepare ${name}${iteration}`)
      },
      async time(iteration: number) {
        calls.push(`${name}${iteration}`)
        return iteration
      },
    })
    const samples = await measureCases([caseOf('a'), caseOf('b')], { iters: 2, warmup: 1, block: 2 })
    expect(samples).toEqual([
      [1, 2],
      [1, 2],
    ])
    expect(calls).toEqual([
      ...['prepare a0', 'prepare a1', 'prepare b0', 'prepare b1', 'a0', 'b0', 'a1', 'b1'],
      ...['prepare a2', 'prepare b2', 'a2', 'b2'],
    ])
  })

  it('uses every set of buffers before it measures', async () => {
    const time = async (iteration: number): Promise<number> => iteration
    const [samples] = await measureCases([{ name: 'many sets', sets: 5, time }], { iters: 1, warmup: 0 })
    expect(samples).toEqual([5])
  })
})

describe('steps', () => {
  const steps = (calls: string[]) => (round: number) =>
    ['a', 'b', 'c'].map((name) => () => calls.push(`${name}${round}`))

  it('on the cpu: those before one have ended when it is timed, and those behind it follow', async () => {
    const calls: string[] = []
    const stopwatch = {
      stream: { synchronize: async () => void calls.push('end') },
      async time(enqueue: () => unknown) {
        calls.push('timed:')
        enqueue()
        calls.push('.')
        return { streamUs: 7, hostUs: 0 }
      },
    }
    const context = { device: { kind: 'cpu' }, stopwatch } as unknown as BenchContext
    const { prepare, time } = stepCase(context, { name: 'b', sets: 1, timed: 1, steps: steps(calls) })
    await prepare!(3)
    expect(await time(3)).toBe(7)
    expect(calls).toEqual(['a3', 'end', 'timed:', 'b3', '.', 'c3', 'end'])
  })

  it('on cuda: one after the other, the mean by events around those that are timed', async () => {
    const calls: string[] = []
    await using stream = standIn.createStream({ threads: 1 })
    const stopwatch = {
      stream,
      async time(enqueue: () => unknown) {
        enqueue()
        await stream.synchronize()
        return { streamUs: 0, hostUs: 0 }
      },
    }
    const context = { device: standIn, stopwatch } as unknown as BenchContext
    const paused = (round: number) => [() => calls.push(`a${round}`), () => stream.delay(2000), () => calls.push('c')]
    const us = await stepCase(context, { name: 'b', sets: 1, timed: 1, steps: paused }).time(5)
    expect(calls).toEqual([5, 6, 7, 8, 9, 10, 11, 12].flatMap((round) => [`a${round}`, 'c']))
    // No shorter than the pause that is in each of them.
    expect(us).toBeGreaterThanOrEqual(2000)
  })
})

describe('rotation', () => {
  it('takes as many sets as fill three caches, from 1 to 16', () => {
    const megabyte = 2 ** 20
    expect(rotatingSets(10 * megabyte, 32 * megabyte)).toBe(10)
    expect(rotatingSets(500 * megabyte, 32 * megabyte)).toBe(1)
    expect(rotatingSets(0, 32 * megabyte)).toBe(16)
    // Very large caches are not filled three times over.
    expect(rotatingSets(64 * megabyte, 1024 * megabyte)).toBe(4)
  })

  it('takes as many sets of a GPU as fill three times 60 MiB, from 1 to 64', () => {
    const gpu = { kind: 'cuda' } as const
    expect([1e9, 180 * 2 ** 20, 100e6, 5e6, 100, 0].map((bytes) => setsOf(gpu, bytes))).toEqual([1, 1, 2, 38, 64, 64])
    expect(setsOf({ kind: 'cpu' }, 2 ** 40)).toBe(1)
  })

  it('times about a millisecond of calls together, all sets equally often', () => {
    expect(callsOf({ bytes: 800e6, sets: 1 }, 'graph')).toBe(5)
    expect(callsOf({ bytes: 80e6, sets: 3 }, 'graph')).toBe(51)
    expect(callsOf({ bytes: 8e9, sets: 1 }, 'graph')).toBe(1)
    expect(callsOf({ bytes: 100, sets: 64 }, 'graph')).toBe(256)
    expect(callsOf({ bytes: 100, sets: 64 }, 'eager')).toBe(64)
    expect(callsOf({ bytes: 5e6, sets: 38 }, 'plan')).toBe(38)
  })

  it('finds the farthest set', () => {
    expect([0, 1, 2, 3].map((set) => oppositeSet(set, 4))).toEqual([2, 3, 0, 1])
    expect(oppositeSet(0, 1)).toBe(0)
  })

  it('reads the size of the cache, and assumes one where it cannot', () => {
    const folder = mkdtempSync(join(tmpdir(), 'bench-test-'))
    try {
      const file = join(folder, 'size')
      writeFileSync(file, '16384K\n')
      expect(lastLevelCacheBytes(file)).toBe(2 ** 24)
      writeFileSync(file, 'unknown\n')
      expect(lastLevelCacheBytes(file)).toBe(2 ** 25)
      expect(lastLevelCacheBytes(join(folder, 'missing'))).toBe(2 ** 25)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})

describe('summarizeOperation', () => {
  const rank: RankMeasurement = {
    ...{ name: 'transport.put', rule: 'r', bytes: 6000, wireBytes: 10, samples: [1, 2, 3] },
    ceilings: [
      { name: 'slow', samples: [9, 9, 9] },
      { name: 'fast', samples: [1, 1, 1] },
    ],
  }
  const other: RankMeasurement = {
    ...{ name: 'transport.put', rule: 'r', bytes: 5000, wireBytes: 20, samples: [3, 2, 1] },
    ceilings: [
      { name: 'slow', samples: [1, 1, 1] },
      { name: 'fast', samples: [1, 1.5, 1.5] },
    ],
  }

  it('compares the slowest rank with the fastest ceiling, and counts the busiest rank', () => {
    expect(summarizeOperation([rank, other])).toEqual({
      ...{ name: 'transport.put', ok: true, rule: 'r', medianUs: 3, p99Us: 3, bytes: 6000, wireBytes: 20, gbPerSec: 2 },
      ...{ ceiling: 'fast', ceilingUs: 1.5, ceilingGbPerSec: 4, ratio: 0.5 },
      ceilings: [
        { name: 'fast', medianUs: 1.5, ratio: 0.5 },
        { name: 'slow', medianUs: 9, ratio: 3 },
      ],
    })
  })

  it('compares with a push on as many multiprocessors, too, where there is one', () => {
    const pushed = { ...rank, ceilings: [...rank.ceilings, { name: pushOnSameSms, samples: [2, 2, 2] }] }
    const tableOf = (measurements: RankMeasurement[]): string[][] =>
      tableLines(measurements.map((one) => summarizeOperation([one]))).map((line) => line.split(/ {2,}/))
    const [header, withPush, without] = tableOf([pushed, rank])
    expect(header!.slice(-2)).toEqual(['same SMs us', 'ratio'])
    expect(withPush!.slice(-3)).toEqual(['fast', '2.00', '1.00'])
    expect(without!.at(-2)).toBe('fast')
    expect(tableOf([rank])[0]!.at(-1)).toBe('ceiling')
  })

  it('is not ok when one rank is not', () => {
    const result = summarizeOperation([rank, { ...other, error: 'row 3 is wrong' }])
    expect(result).toMatchObject({ ok: false, error: 'rank 1: row 3 is wrong' })
  })

  it('tells of a rank that could not run the operation', () => {
    const failed: RankMeasurement = { ...rank, bytes: 0, samples: [], ceilings: [], error: 'not there' }
    for (const ranks of [
      [rank, failed],
      [failed, rank],
    ]) {
      const result = summarizeOperation(ranks)
      expect(result).toMatchObject({ ok: false, medianUs: NaN })
      expect(result.error).toContain('not there')
    }
  })

  it('compares with an empty launch where there is one', () => {
    const tiny = { ...rank, ceilings: [], floor: [2, 1, 2] }
    expect(summarizeOperation([tiny, { ...tiny, floor: [1, 3, 1] }])).toMatchObject({ ratio: null, emptyLaunchUs: 2 })
  })

  it('has no ratio without a ceiling', () => {
    const result = summarizeOperation([{ ...rank, bytes: 0, ceilings: [] }])
    expect(result).toMatchObject({ gbPerSec: 0, ceiling: null, ceilingUs: null, ceilingGbPerSec: null, ratio: null })
  })
})
