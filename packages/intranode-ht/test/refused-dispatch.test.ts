import { type Event, Graph, MoeEpError, type Stream, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { type DispatchOptions, IntranodeBuffer, maxGroupedRows } from '../src/index.js'
import { enqueued, expectRefused, never, type Refused } from './one-wrong.js'
import { expectRoundTrip, planTrip, startTrip } from './round-trip.js'
import { codesOf, device, failureOf, type InputShape, type Rank, withWorld, numbersOf } from './world.js'

const shape: InputShape = { numTokens: [5, 0, 8], hidden: 32, topk: 3, numExperts: 7, dtype: 'bf16', seed: 11 }
const sizes = { hidden: 32, maxTokensPerRank: 8, maxElementBytes: 4, timeoutMs: never }

const x = Tensor.zeros([2, 32], 'bf16')
const right = { topkIdx: Tensor.zeros([2, 3], 'i64'), numExperts: 7 }
const expectFree = (ranks: readonly Rank[], slots = 2): void =>
  expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual(ranks.map(() => slots))

describe('a dispatch that is wrong on one rank', () => {
  const closedTensor = (): Tensor => {
    const memory = device.allocate(128)
    const tensor = new Tensor({ memory, dtype: 'bf16', shape: [2, 32] })
    memory.close()
    return tensor
  }
  const cases: [string, Refused['code'], string, (rank: Rank) => Promise<unknown>][] = [
    [
      'rows whose memory was closed',
      'ERR_MOE_EP_RELEASED',
      'x: ',
      ({ buffer, stream }) => buffer.dispatch(closedTensor(), { ...right, stream }),
    ],
    [
      'something that is no event',
      'ERR_MOE_EP_ARGUMENT',
      '',
      ({ buffer, stream }) => buffer.dispatch(x, { ...right, stream, previousEvent: {} as Event }),
    ],
    [
      'something that is no stream',
      'ERR_MOE_EP_ARGUMENT',
      'stream: ',
      ({ buffer }) => buffer.dispatch(x, { ...right, stream: {} as Stream }),
    ],
    [
      'a closed stream',
      'ERR_MOE_EP_RELEASED',
      'closed',
      async ({ buffer }) => {
        const stream = device.createStream()
        await stream.close()
        return buffer.dispatch(x, { ...right, stream })
      },
    ],
    [
      'memory of another dtype for results',
      'ERR_MOE_EP_ARGUMENT',
      'out.recvX',
      ({ buffer, stream }) => buffer.dispatch(x, { ...right, stream, out: { recvX: Tensor.zeros([9, 32], 'f16') } }),
    ],
    [
      'memory for what nobody sends',
      'ERR_MOE_EP_ARGUMENT',
      'out.recvXScales',
      ({ buffer, stream }) =>
        buffer.dispatch(x, { ...right, stream, out: { recvXScales: Tensor.zeros([9, 1], 'f32') } }),
    ],
    [
      'a slot that there is not',
      'ERR_MOE_EP_ARGUMENT',
      'slot',
      ({ buffer, stream }) => buffer.dispatch(x, { ...right, stream, slot: 2 }),
    ],
    [
      'a grouped one with another filling',
      'ERR_MOE_EP_ARGUMENT',
      'fill',
      ({ buffer, stream }) => buffer.dispatchGrouped(x, { ...right, stream, fill: 'row' as never }),
    ],
    [
      'a worst-case one without ids',
      'ERR_MOE_EP_ARGUMENT',
      'topkIdx',
      async ({ buffer, stream }) => buffer.dispatchWorstCase(x, { numExperts: 7, stream }),
    ],
    [
      'quantised rows with scales of other tokens',
      'ERR_MOE_EP_ARGUMENT',
      'scales',
      ({ buffer, stream }) =>
        buffer.dispatch(Tensor.zeros([2, 32], 'fp8e4m3'), {
          ...{ ...right, scales: Tensor.zeros([3, 1], 'f32'), stream },
        }),
    ],
  ]

  test.each(cases)('%s', async (_, code, text, wrongCall) => {
    await withWorld(3, sizes, async (ranks) => {
      for (const wrong of [0, 2, 1]) {
        await expectRefused(ranks, { wrong, code, text }, (rank, isWrong) =>
          isWrong ? wrongCall(rank) : rank.buffer.dispatch(x, { ...right, stream: rank.stream }),
        )
        expectFree(ranks)
      }
      await expectRoundTrip(ranks, shape)
    })
  })

  test('at worst-case size, where the stream brings the refusal', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const refused = { wrong: 1, code: 'ERR_MOE_EP_ARGUMENT', text: 'numExperts' } as const
      await expectRefused(ranks, refused, (rank, isWrong) =>
        enqueued(rank, () => {
          const options = { ...right, ...(isWrong && { numExperts: 0 }), stream: rank.stream }
          const got = rank.buffer.dispatchWorstCase(x, options)
          got.handle.lease.release(got.event)
          return got
        }),
      )
      expectFree(ranks)
      await expectRoundTrip(ranks, shape)
    })
  })

  test('grouped, with a plan or without', async () => {
    const capacity = maxGroupedRows({ maxTokensPerRank: 8, numRanks: 3, numExperts: 7, topk: 3, expertAlignment: 4 })
    await withWorld(3, { ...sizes, capacity }, async (ranks) => {
      const options = (rank: Rank) => ({ ...right, expertAlignment: 4, stream: rank.stream })
      const first = await Promise.all(ranks.map((rank) => rank.buffer.dispatchGrouped(x, options(rank))))
      for (const { handle } of first) handle.lease.release()
      const refused = { wrong: 2, code: 'ERR_MOE_EP_ARGUMENT', text: 'expertAlignment' } as const
      await expectRefused(ranks, refused, (rank, isWrong) =>
        rank.buffer.dispatchGrouped(x, { ...options(rank), ...(isWrong && { expertAlignment: 0 }) }),
      )
      expectFree(ranks)
      const planned = { wrong: 0, code: 'ERR_MOE_EP_ARGUMENT', text: 'plan' } as const
      const outcomes = expectRefused(ranks, planned, async (rank, isWrong) => {
        const plan = first[isWrong ? 1 : rank.rank]!.handle.plan
        const { handle, event } = await rank.buffer.dispatchGrouped(x, { ...options(rank), plan })
        await enqueued(rank, () => ({ event })).finally(() => handle.lease.release())
      })
      await outcomes
      expectFree(ranks)
      await expectRoundTrip(ranks, shape)
    })
  })

  test('with plans, where the event brings the refusal', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const plans = await expectRoundTrip(ranks, shape)
      const most = Math.max(...(await numbersOf(plans[0]!.rankPrefixMatrix)).slice(6))
      const small = await Promise.all(
        ranks.map(({ group, rank }) =>
          IntranodeBuffer.create(group, { ...sizes, capacity: most - 1 }).then((buffer) => ({
            ...ranks[rank]!,
            buffer,
          })),
        ),
      )
      const rows = shape.numTokens.map((tokens) => Tensor.zeros([tokens, 32], 'bf16'))
      const call = (rank: Rank, options: DispatchOptions, own = rows[rank.rank]!): Promise<void> =>
        rank.buffer
          .dispatch(own, { ...options, stream: rank.stream })
          .then(({ event, handle }) => enqueued(rank, () => ({ event })).finally(() => handle.lease.release()))
      const cases: [string, DispatchOptions, Tensor | undefined][] = [
        ['topkIdx', { plan: plans[0]!, topkIdx: right.topkIdx }, undefined],
        ['tokens, as in the plan', { plan: plans[0]! }, Tensor.zeros([4, 32], 'bf16')],
        ['one that rank 0 made', { plan: plans[1]! }, undefined],
        ['one of a plain dispatch', { plan: { ...plans[0]!, grouped: true } }, undefined],
        ['plan.rankPrefixMatrix', { plan: { ...plans[0]!, rankPrefixMatrix: Tensor.zeros([2, 2], 'i32') } }, undefined],
        ['out.recvTopkIdx', { plan: plans[0]!, out: { recvTopkIdx: Tensor.zeros([9, 3], 'i64') } }, undefined],
      ]
      for (const [text, options, own] of cases) {
        const refused = { wrong: 0, code: 'ERR_MOE_EP_ARGUMENT', text } as const
        await expectRefused(ranks, refused, (rank, isWrong) =>
          isWrong ? call(rank, options, own) : call(rank, { plan: plans[rank.rank]! }),
        )
        expectFree(ranks)
      }
      const full = await Promise.all(small.map((rank) => failureOf(call(rank, { plan: plans[rank.rank]! }))))
      expect(codesOf(full)).toEqual(Array(3).fill('ERR_MOE_EP_CAPACITY'))
      for (const { message } of full) expect(message).toContain(`would receive ${most} rows`)
      const few = { wrong: 0, code: 'ERR_MOE_EP_CAPACITY', text: 'rows arrive, it has 0' } as const
      await expectRefused(ranks, few, (rank, isWrong) =>
        call(rank, { plan: plans[rank.rank]!, ...(isWrong && { out: { recvX: Tensor.zeros([0, 32], 'bf16') } }) }),
      )
      await expectRoundTrip(ranks, shape, { plans })
      for (const { buffer } of small) buffer.close()
    })
  })
})

test('memory of one rank that is too small for what arrives: refused on all with the true count', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const errors = await Promise.all(
      ranks.map(({ rank, buffer, stream }) => {
        const out = { recvX: Tensor.zeros([rank === 0 ? 5 : 24, 32], 'bf16') }
        return failureOf(buffer.dispatch(x, { ...right, stream, out }))
      }),
    )
    expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_CAPACITY'))
    for (const { message } of errors) expect(message).toContain('rank 0 would receive 6 rows, its out holds 5')
    expectFree(ranks)
    await expectRoundTrip(ranks, shape)
  })
})

test('one rank that has no free slot refuses for all, wherever the others meet', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const trip = planTrip(shape)
    for (const freed of [0, 1]) {
      const both = await Promise.all(ranks.map((rank) => Promise.all([startTrip(rank, trip), startTrip(rank, trip)])))
      for (const { rank } of ranks.slice(0, 2)) both[rank]![freed]!.handle.lease.release()
      const refused = { wrong: 2, code: 'ERR_MOE_EP_NO_FREE_SLOT', text: 'all 2 slots are in flight' } as const
      await expectRefused(ranks, refused, (rank) => startTrip(rank, trip))
      for (const { handle } of both.flat()) handle.lease.release()
      expectFree(ranks)
      await expectRoundTrip(ranks, shape)
    }
  })
})

test('inside a capture of one rank', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await expectRefused(ranks, { wrong: 1, code: 'ERR_MOE_EP_CAPTURE', text: 'captured' }, (rank, isWrong) => {
      if (!isWrong) return startTrip(rank, planTrip(shape))
      let refused: Promise<unknown> | undefined
      Graph.capture(rank.stream, () => void (refused = startTrip(rank, planTrip(shape))))
      return refused!
    })
    await expectRoundTrip(ranks, shape)
  })
})

test('what is refused while all capture is refused there alone, and nobody waits', async () => {
  await withWorld(3, sizes, async (ranks) => {
    for (const rank of ranks) {
      Graph.capture(rank.stream, () => {
        const call = (numExperts: number) =>
          rank.buffer.dispatchWorstCase(x, { ...right, numExperts, stream: rank.stream })
        if (rank.rank === 1) expect(() => call(0)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
        else call(7).handle.lease.release()
      })
    }
    expectFree(ranks)
    await expectRoundTrip(ranks, shape)
  })
})

test('of several ranks that refuse, the others report the lowest; each of them has its own error', async () => {
  await withWorld(4, sizes, async (ranks) => {
    for (const wrong of [
      [1, 3],
      [0, 1, 2],
      [0, 1, 2, 3],
    ]) {
      const errors = await Promise.all(
        ranks.map(({ rank, buffer, stream }) => {
          const numExperts = wrong.includes(rank) ? -rank : 7
          return failureOf(buffer.dispatch(x, { ...right, numExperts, stream }))
        }),
      )
      for (const [rank, { code, message }] of errors.entries()) {
        expect(code).toBe('ERR_MOE_EP_ARGUMENT')
        expect(message).toContain(`received ${wrong.includes(rank) ? -rank : -wrong[0]!}`)
        expect(message.includes(`refused by rank ${wrong[0]}`)).toBe(!wrong.includes(rank))
      }
      expectFree(ranks)
    }
    await Promise.all(ranks.map(({ stream }) => stream.synchronize()))
    await expectRoundTrip(ranks, { ...shape, numTokens: [5, 0, 8, 2] })
  })
})

test('refusals of many calls in a row, on several streams, keep their places between the right ones', async () => {
  await withWorld(3, { ...sizes, maxInFlight: 3 }, async (ranks) => {
    await Promise.all(
      ranks.map(async (rank) => {
        const streams = [rank.stream, device.createStream(), device.createStream()]
        for (let round = 0; round < 60; round++) {
          streams[(round + rank.rank) % 3]!.delay(((round * 7 + rank.rank) % 5) * 100)
          const calls = streams.map((stream, index) => {
            // In a third of the calls everybody is right, in others one rank or all refuse.
            const who = (round * 3 + index) % 9
            const numExperts = who === rank.rank || who === 8 ? 0 : 7
            return rank.buffer.dispatch(x, { ...right, numExperts, stream }).then(
              ({ handle }) => (handle.lease.release(stream.record()), undefined),
              (error: MoeEpError) => error.code,
            )
          })
          const expected = streams.map((_, index) =>
            [0, 1, 2, 8].includes((round * 3 + index) % 9) ? 'ERR_MOE_EP_ARGUMENT' : undefined,
          )
          expect(await Promise.all(calls)).toEqual(expected)
        }
        for (const stream of streams) await stream.synchronize()
        for (const stream of streams.slice(1)) await stream.close()
      }),
    )
    expectFree(ranks, 3)
    await expectRoundTrip(ranks, shape)
  })
})

test('refuseDispatch: refuses for a caller; long words are cut between two characters', async () => {
  await withWorld(3, sizes, async (ranks) => {
    for (const words of ['the gate is broken', 'ü'.repeat(1000), `x${'€'.repeat(1000)}`]) {
      const errors = await Promise.all(
        ranks.map(async (rank) => {
          if (rank.rank !== 1) return failureOf(startTrip(rank, planTrip(shape)))
          return rank.buffer.refuseDispatch(new MoeEpError('ERR_MOE_EP_CHECK_FAILED', words), { stream: rank.stream })
        }),
      )
      for (const error of [errors[0]!, errors[2]!]) {
        expect(error.code).toBe('ERR_MOE_EP_CHECK_FAILED')
        const told = error.message.replace('intranode dispatch: refused by rank 1: ', '')
        expect(words.startsWith(told)).toBe(true)
        expect(told.length).toBeGreaterThan(Math.min(words.length, 150) - 1)
      }
    }
    await expectRoundTrip(ranks, shape)
  })
})
