import { parseArgs } from 'node:util'
import { getDevice } from '@moe-ep/core'
import { IntranodeBuffer } from '@moe-ep/intranode-ht'
import type { ProcessGroup } from '@moe-ep/transport'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { closeWorld, openWorld } from '../../../packages/transport/test/rendezvous/world.js'
import { benchFlags, type BenchOptions, benchOptionsFrom } from '../src/command/bench-options.js'
import { isBetweenRanks } from '../src/command/operation-names.js'
import { CudaStopwatch, nextGateUs } from '../src/measure/cuda-stopwatch.js'
import { measureCases } from '../src/measure/measure-cases.js'
import { Meeting } from '../src/measure/meeting.js'
import { Scope } from '../src/measure/scope.js'
import { operations } from '../src/operations/index.js'
import type { BenchContext } from '../src/operations/operation.js'
import { repeatAfter } from '../src/workload/device-words.js'
import { fillRandom, patterns, randomRow } from '../src/workload/random-words.js'
import { Routing } from '../src/workload/routing.js'
import { sameNumbers } from '../src/workload/sample-rows.js'
import { guardStandIn, standIn } from './stand-in.js'

// Memory of the stand-in is shared as that of the cpu is.
vi.mock(import('../../../packages/transport/src/symmetric/agreement.js'), async (importOriginal) => {
  const original = await importOriginal()
  return { ...original, wishOf: (_, sizes, sharing) => original.wishOf(getDevice('cpu'), sizes, sharing) }
})

// Buffers of these sizes would take turns 64 at a time, and each of them once before what is measured.
vi.mock(import('../src/measure/rotation.js'), async (importOriginal) => {
  const original = await importOriginal()
  return { ...original, setsOf: (...of) => Math.min(4, original.setsOf(...of)) }
})

beforeAll(guardStandIn)
afterAll(() => vi.restoreAllMocks())

const sizes = ['--tokens', '24', '--hidden', '160', '--experts', '16', '--topk', '3']

function optionsOf(ranks: number, ...flags: string[]): BenchOptions {
  const args = ['--device', 'cuda', '--ranks', String(ranks), ...sizes, ...flags]
  return benchOptionsFrom(parseArgs({ args, options: benchFlags }).values)
}

/** Runs `body` for each rank of a world at the same time. */
async function withRanks(options: BenchOptions, body: (context: BenchContext) => Promise<void>): Promise<void> {
  const groups = await openWorld(options.ranks)
  const routing = new Routing({ ...options, ranks: options.world })
  const onRank = async (group: ProcessGroup): Promise<void> => {
    const stopwatch = new CudaStopwatch(standIn, await Meeting.create(group, standIn))
    await body({ options, group, solo: group, routing, stopwatch, device: standIn })
    await stopwatch.close()
  }
  await Promise.all(groups.map(onRank))
  await closeWorld(groups)
}

describe.each([1, 2])('operations between %i ranks on a device', (ranks) => {
  const options = optionsOf(ranks)

  it.each(options.ops.filter(isBetweenRanks))('%s', async (name) => {
    await withRanks(options, async (context) => {
      const scope = new Scope(standIn)
      const { subject, ceilings, check, bytes, block = 1 } = await operations[name](context, scope)
      expect(ceilings.map((ceiling) => ceiling.name)).toEqual(
        bytes === 0 ? [] : ['push', 'push in pieces', 'push of rows'],
      )
      const samples = await measureCases([subject, ...ceilings], { iters: 1, warmup: 1, block })
      expect(samples.flat().every((microseconds) => microseconds > 0)).toBe(true)
      await context.group.barrier()
      expect(await check()).toBeUndefined()
      await scope.close()
    })
  })
})

it('knows what lies behind the words that repeat', async () => {
  const shape = [Math.ceil(repeatAfter / 1000) + 1, 1000]
  const scope = new Scope(standIn)
  const matrix = scope.zeros(shape, 'i32')
  fillRandom(matrix, 7, patterns.bf16)
  const rows = new Uint8Array((await matrix.read()).buffer)
  const wrong = [0, shape[0]! - 2, shape[0]! - 1].filter((row) => {
    const expected = randomRow(7, patterns.bf16, { device: standIn, row, rowBytes: 4000 })
    return !sameNumbers(rows.subarray(row * 4000, (row + 1) * 4000), expected)
  })
  expect(wrong).toEqual([])
  await scope.close()
})

it('passes the number of multiprocessors on to all calls', async () => {
  const calls = ['dispatch', 'dispatchWorstCase', 'combine', 'dispatchGrouped', 'combineGrouped'] as const
  const spies = calls.map((name) => vi.spyOn(IntranodeBuffer.prototype, name))
  const names = ['dispatchWorstCase-fp8', 'combine-staged', 'combineGrouped-zero-copy'] as const
  await withRanks(optionsOf(1, '--sms', '12'), async (context) => {
    for (const name of names) {
      const scope = new Scope(standIn)
      const { subject, check, block = 1 } = await operations[`intranode-ht.${name}`](context, scope)
      await measureCases([subject], { iters: 1, warmup: 0, block })
      expect(await check()).toBeUndefined()
      await scope.close()
    }
  })
  for (const { mock } of spies) {
    expect(mock.calls.length).toBeGreaterThan(0)
    expect(mock.calls.every((args) => JSON.stringify(args.at(-1), ['numSms']) === '{"numSms":12}')).toBe(true)
  }
})

describe('Meeting', () => {
  it.each([1, 2, 3, 5])('lets %i streams go on when all have come', async (ranks) => {
    const groups = await openWorld(ranks)
    const meetings = await Promise.all(groups.map((group) => Meeting.create(group, standIn)))
    const streams = groups.map(() => standIn.createStream({ threads: 1 }))
    for (let round = 0; round < 3; round++) {
      const marks = streams.map((stream, rank) => {
        stream.delay(rank === round ? 5000 : 0)
        const came = stream.record()
        meetings[rank]!.enqueue(stream)
        return { came, left: stream.record() }
      })
      await Promise.all(streams.map((stream) => stream.synchronize()))
      const last = Math.max(...marks.map(({ came }) => came.completedAtUs))
      expect(marks.every(({ left }) => left.completedAtUs >= last)).toBe(true)
    }
    await Promise.all(streams.map((stream) => stream.close()))
    for (const meeting of meetings) meeting.close()
    await closeWorld(groups)
  })
})

it('pauses as long as enqueuing takes, at least 2 ms and at most 50', () => {
  expect(nextGateUs(2000, 10)).toBe(2000)
  expect(nextGateUs(2000, 5000)).toBe(10_100)
  expect(nextGateUs(10_000, 10)).toBe(8000)
  expect(nextGateUs(2000, 1e6)).toBe(50_000)
})
