import { Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { closeWorld, openWorld } from '../../transport/test/rendezvous/world.js'
import { thrownBy } from '../../transport/test/symmetric/world.js'
import { type DispatchOptions, IntranodeBuffer, type IntranodeBufferSizes } from '../src/index.js'
import { expectRefused, never } from './one-wrong.js'
import { planTrip, expectRoundTrip, startTrip } from './round-trip.js'
import {
  codesOf,
  createBuffer,
  failureOf,
  type InputShape,
  numbersOf,
  randomNumbers,
  type Rank,
  withWorld,
} from './world.js'

const shape: InputShape = { numTokens: [5, 0, 8], hidden: 32, topk: 3, numExperts: 7, dtype: 'bf16', seed: 11 }
const sizes = { hidden: 32, maxTokensPerRank: 8, maxElementBytes: 4 }

/** A dispatch of `tokens` rows that all go to `expert`. */
function sendTo({ buffer, stream }: Rank, expert: number, tokens: number, numExperts = 3) {
  const topkIdx = Tensor.from(Array<number>(tokens).fill(expert), [tokens, 1], 'i64')
  return buffer.dispatch(Tensor.zeros([tokens, 32], 'bf16'), { topkIdx, numExperts, stream })
}

describe('a capacity that does not suffice', () => {
  test('is refused on every rank with the true count, and the buffer stays usable', async () => {
    await withWorld(3, { ...sizes, capacity: 13 }, async (ranks) => {
      for (let round = 0; round < 5; round++) {
        const errors = await Promise.all(ranks.map((rank) => failureOf(sendTo(rank, 1, 6))))
        expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_CAPACITY'))
        for (const { message } of errors) expect(message).toContain('rank 1 would receive 18 rows, the buffer holds 13')
        expect(ranks.map(({ buffer }) => [buffer.freeSlots, buffer.failure])).toEqual(ranks.map(() => [2, undefined]))
        await expectRoundTrip(ranks, { ...shape, seed: round })
      }
    })
  })

  test('exactly met is enough', async () => {
    await withWorld(3, { ...sizes, capacity: 18 }, async (ranks) => {
      const received = await Promise.all(ranks.map((rank) => sendTo(rank, 2, 6)))
      expect(received.map(({ recvX }) => recvX.shape[0])).toEqual([0, 0, 18])
    })
  })

  test('ranks that are far apart in time still read the counts of their own call', async () => {
    const random = randomNumbers(5)
    await withWorld(4, { ...sizes, capacity: 4, maxInFlight: 1 }, async (ranks) => {
      const calls = Array.from({ length: 150 }, () => {
        const expert = Math.floor(random() * 4)
        return { expert, counts: ranks.map(() => Math.floor(random() * 6)) }
      })
      const outcomes = await Promise.all(
        ranks.map(async (rank) => {
          const seen: string[] = []
          for (const { expert, counts } of calls) {
            rank.stream.delay(Math.floor(random() ** 6 * 3000))
            const outcome = await sendTo(rank, expert, counts[rank.rank]!, 4).then(
              async ({ handle }) => {
                handle.lease.release()
                return `prefix ${await numbersOf(handle.plan.rankPrefixMatrix)}`
              },
              (error: Error) => error.message,
            )
            seen.push(outcome)
          }
          return seen
        }),
      )
      const expected = calls.map(({ expert, counts }) => {
        const prefix: number[] = []
        counts.reduce(
          (sum, count) => (
            prefix.push(...[0, 1, 2, 3].map((rank) => (rank === expert ? sum + count : 0))),
            sum + count
          ),
          0,
        )
        const total = counts.reduce((a, b) => a + b)
        if (total <= 4) return `prefix ${prefix}`
        return `intranode dispatch: rank ${expert} would receive ${total} rows, the buffer holds 4`
      })
      for (const seen of outcomes) expect(seen).toEqual(expected)
    })
  })
})

describe('arguments that differ between ranks', () => {
  const trip = planTrip(shape)
  const x = Tensor.zeros([2, 32], 'bf16')
  const ids = (dtype: 'i32' | 'i64' = 'i64', topk = 3): Tensor => Tensor.zeros([2, topk], dtype)
  const most: DispatchOptions = { topkIdx: ids(), numExperts: 7 }
  const cases: [string, Tensor, DispatchOptions, string][] = [
    ['topk', x, { ...most, topkIdx: ids('i64', 4) }, 'topk: rank 0 passed 3, rank 2 passed 4'],
    ['numExperts', x, { ...most, numExperts: 8 }, 'numExperts: rank 0 passed 7, rank 2 passed 8'],
    ['hidden', Tensor.zeros([2, 16], 'bf16'), most, 'bytes of a row: rank 0 passed 64, rank 2 passed 32'],
    ['dtype', Tensor.zeros([2, 32], 'f32'), most, 'bytes of a row: rank 0 passed 64, rank 2 passed 128'],
    ['ids', x, { ...most, topkIdx: ids('i32') }, 'bytes of an id: rank 0 passed 8, rank 2 passed 4'],
    ['scales', x, { ...most, scales: Tensor.zeros([2, 1], 'f32') }, 'scale columns: rank 0 passed 0, rank 2 passed 1'],
    [
      'weights',
      x,
      { ...most, topkWeights: Tensor.zeros([2, 3], 'f32') },
      'topkWeights given: rank 0 passed 0, rank 2 passed 1',
    ],
    ['channels', x, { ...most, numChannels: 9 }, 'numChannels: rank 0 passed 10, rank 2 passed 9'],
    ['alignment', x, { ...most, expertAlignment: 2 }, 'expertAlignment: rank 0 passed 1, rank 2 passed 2'],
  ]
  test.each(cases)('%s: refused on every rank, usable afterwards', async (_, otherX, other, text) => {
    await withWorld(3, sizes, async (ranks) => {
      const errors = await Promise.all(
        ranks.map(({ rank, buffer, stream }) =>
          failureOf(buffer.dispatch(rank === 2 ? otherX : x, { ...(rank === 2 ? other : most), stream })),
        ),
      )
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
      for (const { message } of errors) expect(message).toContain(text)
      await expectRoundTrip(ranks, shape)
    })
  })

  test('a plan on some ranks only: refused on every rank, usable once the lease of the plan is released', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const plans = await expectRoundTrip(ranks, shape)
      const errors = await Promise.all(
        ranks.map(async (rank) => {
          if (rank.rank !== 1) return failureOf(startTrip(rank, trip))
          // With a plan nothing is awaited, so the event brings the refusal.
          const { event, handle } = await startTrip(rank, planTrip(shape, { plans }))
          const error = await failureOf(event.synchronize())
          await failureOf(rank.stream.synchronize())
          handle.lease.release()
          return error
        }),
      )
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
      for (const { message } of errors) expect(message).toContain('cached plan: rank 0 passed 0, rank 1 passed 1')
      await expectRoundTrip(ranks, shape)
      await expectRoundTrip(ranks, shape, { plans })
    })
  })

  test('plans of different dispatches: refused on every rank', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const plans = await expectRoundTrip(ranks, shape)
      const others = await expectRoundTrip(ranks, { ...shape, numTokens: [5, 0, 7] })
      const errors = await Promise.all(
        ranks.map(async (rank) => {
          const { event, handle } = await startTrip(rank, planTrip(shape, { plans: rank.rank === 0 ? others : plans }))
          const error = await failureOf(event.synchronize())
          await failureOf(rank.stream.synchronize())
          handle.lease.release()
          return error
        }),
      )
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
      for (const { message } of errors) expect(message).toContain('digest of the plan')
      await expectRoundTrip(ranks, shape, { plans })
    })
  })

  test('rows of another shape in combine: refused on every rank, usable afterwards', async () => {
    await withWorld(3, { ...sizes, timeoutMs: never }, async (ranks) => {
      // Nothing goes to rank 2, which hears of it all the same.
      const trip = planTrip({ ...shape, choose: (value) => Math.floor(value * 4) })
      const errors = await Promise.all(
        ranks.map(async (rank) => {
          const { recvX, handle } = await startTrip(rank, trip)
          // f16 rows are as long as bf16 rows: only the dtype tells them apart.
          const y = Tensor.zeros(recvX.shape, rank.rank === 1 ? 'f16' : 'bf16')
          const { event } = rank.buffer.combine(y, handle, { stream: rank.stream })
          const error = await failureOf(event.synchronize())
          await rank.stream.synchronize().catch(() => {})
          return error
        }),
      )
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
      for (const { message } of errors) expect(message).toMatch(/rank 0 passed .* 16 bits .*, rank 1 passed .* 16 bits/)
      await expectRoundTrip(ranks, shape)
    })
  })

  test.each<[string, IntranodeBufferSizes, boolean]>([
    ['other bytes', { ...sizes, hidden: 64 }, false],
    ['as many bytes in other places', { ...sizes, capacity: 23 }, true],
    ['as many bytes for another use', { ...sizes, maxChannels: 63 }, true],
  ])('buffers of different sizes are refused on every rank: %s', async (_, other, asMany) => {
    expect(IntranodeBuffer.sizeHint(other, 3) === IntranodeBuffer.sizeHint(sizes, 3)).toBe(asMany)
    const groups = await openWorld(3)
    const errors = await Promise.all(
      groups.map((group) => failureOf(createBuffer(group, group.rank === 1 ? other : { ...sizes, capacity: 24 }))),
    )
    expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
    const buffers = await Promise.all(groups.map((group) => createBuffer(group, sizes)))
    for (const buffer of buffers) buffer.close()
    await closeWorld(groups)
  })
})

describe('ids out of range', () => {
  test.each([
    [7, 1],
    [-2, 4],
    [2 ** 40, 0],
  ])('%i for token %i of one rank: all ranks hear which, and the buffer works on', async (id, token) => {
    await withWorld(3, sizes, async (ranks) => {
      const errors = await Promise.all(
        ranks.map((rank) => {
          const ids = Array<number>(5 * 2).fill(0)
          if (rank.rank === 1) ids[token * 2 + 1] = id
          const topkIdx = Tensor.from(ids, [5, 2], 'i64')
          return failureOf(
            rank.buffer.dispatch(Tensor.zeros([5, 32], 'bf16'), { topkIdx, numExperts: 7, stream: rank.stream }),
          )
        }),
      )
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_ARGUMENT'))
      for (const { message } of errors)
        expect(message).toContain(
          `rank 1: topkIdx: expected -1 or an expert below 7, received ${id} for token ${token}`,
        )
      expect(ranks.map(({ buffer }) => buffer.failure)).toEqual(Array(3).fill(undefined))
      await expectRoundTrip(ranks, shape)
    })
  })
})

describe('what one rank can see by itself', () => {
  const bf16 = (tokens: number, hidden: number): Tensor => Tensor.zeros([tokens, hidden], 'bf16')
  const good = (tokens = 2): DispatchOptions => ({ topkIdx: Tensor.zeros([tokens, 3], 'i64'), numExperts: 7 })
  const cases: [string, () => Tensor, () => DispatchOptions, string][] = [
    ['rows of 8 bytes', () => bf16(2, 4), good, '16 bytes'],
    ['rows of 40 bytes', () => bf16(2, 20), good, '16 bytes'],
    ['rows of no bytes', () => bf16(2, 0), good, '16 bytes'],
    ['too long rows', () => bf16(2, 72), good, 'at most 128 bytes'],
    ['too many tokens', () => bf16(9, 32), () => good(9), 'at most 8 tokens'],
    ['another dtype', () => Tensor.zeros([2, 32], 'i32'), good, 'dtype'],
    ['one dimension', () => Tensor.zeros([32], 'bf16'), good, 'shape'],
    [
      'strided rows',
      () => new Tensor({ memory: bf16(4, 32).memory, dtype: 'bf16', shape: [2, 32], strides: [64, 1] }),
      good,
      'contiguous',
    ],
    ['no tensor', () => [] as never, good, 'a Tensor'],
    ['no ids', () => bf16(2, 32), () => ({ numExperts: 7 }), 'topkIdx'],
    ['ids of f32', () => bf16(2, 32), () => ({ ...good(), topkIdx: Tensor.zeros([2, 3], 'f32') }), 'topkIdx'],
    ['ids of other tokens', () => bf16(2, 32), () => good(3), 'topkIdx'],
    ['topk 0', () => bf16(2, 32), () => ({ ...good(), topkIdx: Tensor.zeros([2, 0], 'i64') }), 'topk'],
    ['topk 33', () => bf16(2, 32), () => ({ ...good(), topkIdx: Tensor.zeros([2, 33], 'i64') }), 'topk'],
    ['no experts', () => bf16(2, 32), () => ({ ...good(), numExperts: 0 }), 'numExperts'],
    ['too many experts', () => bf16(2, 32), () => ({ ...good(), numExperts: 1025 }), 'numExperts'],
    [
      'weights of f16',
      () => bf16(2, 32),
      () => ({ ...good(), topkWeights: Tensor.zeros([2, 3], 'f16') }),
      'topkWeights',
    ],
    [
      'weights of another topk',
      () => bf16(2, 32),
      () => ({ ...good(), topkWeights: Tensor.zeros([2, 4], 'f32') }),
      'topkWeights',
    ],
    ['scales of bf16', () => bf16(2, 32), () => ({ ...good(), scales: Tensor.zeros([2, 1], 'bf16') }), 'scales'],
    ['scales of other tokens', () => bf16(2, 32), () => ({ ...good(), scales: Tensor.zeros([3, 1], 'f32') }), 'scales'],
    ['too many scales', () => bf16(2, 32), () => ({ ...good(), scales: Tensor.zeros([2, 2], 'f32') }), 'scale columns'],
    ['too many channels', () => bf16(2, 32), () => ({ ...good(), numChannels: 65 }), 'numChannels'],
    ['alignment 0', () => bf16(2, 32), () => ({ ...good(), expertAlignment: 0 }), 'expertAlignment'],
    ['timeout 0', () => bf16(2, 32), () => ({ ...good(), timeoutMs: 0 }), 'timeoutMs'],
    ['slot 2', () => bf16(2, 32), () => ({ ...good(), slot: 2 }), 'slot'],
  ]

  test('is refused on all ranks before anything is sent', async () => {
    await withWorld(3, { ...sizes, timeoutMs: never }, async (ranks) => {
      for (const [index, [, x, options, text]] of cases.entries()) {
        const refused = { wrong: index % 3, code: 'ERR_MOE_EP_ARGUMENT', text } as const
        await expectRefused(ranks, refused, ({ buffer, stream }, isWrong) =>
          isWrong
            ? buffer.dispatch(x(), { ...options(), stream })
            : buffer.dispatch(bf16(2, 32), { ...good(), stream }),
        )
        expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual([2, 2, 2])
      }
      await expectRoundTrip(ranks, shape)
    })
  })

  test.each<[string, Partial<IntranodeBufferSizes>]>([
    ['hidden', { hidden: 0 }],
    ['maxTokensPerRank', { maxTokensPerRank: -1 }],
    ['maxTokensPerRank', { maxTokensPerRank: 2 ** 31 / 2, capacity: 1 }],
    ['capacity', { capacity: 2 ** 31 }],
    ['maxElementBytes', { maxElementBytes: 3 }],
    ['maxScaleColumns', { maxScaleColumns: -1 }],
    ['maxTopk', { maxTopk: 33 }],
    ['maxExperts', { maxExperts: 0 }],
    ['maxChannels', { maxChannels: 0 }],
    ['maxInFlight', { maxInFlight: 65 }],
  ])('of sizes: %s', (name, wrong) => {
    const error = thrownBy(() => IntranodeBuffer.sizeHint({ ...sizes, ...wrong }, 2))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(name) })
  })
})

test('ranks on several nodes are refused', async () => {
  const groups = await openWorld(4, { nodes: 2 })
  const errors = await Promise.all(groups.map((group) => failureOf(createBuffer(group, sizes))))
  expect(codesOf(errors)).toEqual(Array(4).fill('ERR_MOE_EP_UNSUPPORTED'))
  await closeWorld(groups)
})
