import { setTimeout as sleep } from 'node:timers/promises'
import { MoeEpError, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { planTrip, expectRoundTrip, startTrip, type Trip } from './round-trip.js'
import { codesOf, createBuffer, failureOf, type InputShape, type Rank, withWorld } from './world.js'

const shape: InputShape = { numTokens: [4, 4, 4], hidden: 16, topk: 6, numExperts: 3, dtype: 'bf16', seed: 2 }
/** What ranks that never come are waited for. Short deadlines stand only at calls that nobody can answer in time. */
const hour = 3_600_000
const sizes = { hidden: 16, maxTokensPerRank: 4, timeoutMs: hour }
/** Connecting and building keep a deadline that a busy machine meets. */
const soon = 200

/** Combines whatever came for `trip`; the sums do not matter. */
async function combineOf(rank: Rank, trip: Trip, timeoutMs = hour): Promise<void> {
  const { recvX, handle } = await startTrip(rank, trip)
  rank.buffer.combine(Tensor.zeros(recvX.shape, 'bf16'), handle, { stream: rank.stream, timeoutMs })
  await rank.stream.synchronize()
}

async function expectForever(ranks: readonly Rank[], code: string, parts: readonly string[]): Promise<void> {
  for (let again = 0; again < 3; again++) {
    const errors = await Promise.all(ranks.map((rank) => failureOf(startTrip(rank, planTrip(shape)))))
    expect(codesOf(errors)).toEqual(ranks.map(() => code))
    for (const { message } of errors) for (const part of parts) expect(message).toContain(part)
    expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual(ranks.map(() => 2))
  }
  for (const { buffer } of ranks) expect(buffer.failure?.code).toBe(code)
}

describe('a deadline that passes', () => {
  test('in dispatch: the waiting ranks name the one that never called, and all later calls say the same', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const trip = planTrip(shape, { timeoutMs: soon })
      const errors = await Promise.all(ranks.slice(0, 2).map((rank) => failureOf(startTrip(rank, trip))))
      expect(codesOf(errors)).toEqual(Array(2).fill('ERR_MOE_EP_TIMEOUT'))
      for (const { message } of errors) {
        expect(message).toMatch(/rank [01]: deadline passed: intranode dispatch, slot 0: no counts from rank 2/)
      }
      await expectForever(ranks, 'ERR_MOE_EP_TIMEOUT', ['no counts from rank 2'])
    })
  })

  test('of one impatient rank ends the waits of all, however long theirs are', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const errors = await Promise.all(
        ranks.slice(0, 2).map(({ rank, buffer, stream }) => {
          const topkIdx = Tensor.zeros([1, 1], 'i64')
          const options = { topkIdx, numExperts: 3, stream, ...(rank === 1 && { timeoutMs: soon }) }
          return failureOf(buffer.dispatch(Tensor.zeros([1, 16], 'bf16'), options))
        }),
      )
      for (const { message } of errors) expect(message).toMatch(/rank 1: deadline passed: .* from rank 2/)
    })
  })

  test('with a plan: the event tells', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const plans = await expectRoundTrip(ranks, shape)
      const errors = await Promise.all(
        ranks.slice(1).map(async (rank) => {
          const { event } = await startTrip(rank, planTrip(shape, { plans, timeoutMs: soon }))
          return failureOf(event.synchronize())
        }),
      )
      expect(codesOf(errors)).toEqual(Array(2).fill('ERR_MOE_EP_TIMEOUT'))
      for (const { message } of errors) expect(message).toContain('no word that its slot is free from rank 0')
    })
  })

  test('in combine: names the rank whose results did not come', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const trip = planTrip({ ...shape, choose: (value) => Math.floor(value * 3) })
      const errors = await Promise.all(
        ranks.map(async (rank) => {
          if (rank.rank === 0) return void (await startTrip(rank, trip))
          return failureOf(combineOf(rank, trip, soon))
        }),
      )
      for (const error of errors.slice(1)) {
        expect(error?.code).toBe('ERR_MOE_EP_TIMEOUT')
        expect(error?.message).toContain('intranode combine, slot 0: no results from rank 0')
      }
    })
  })

  test('in combine: also of ranks without rows there, for all must agree on it', async () => {
    await withWorld(3, { ...sizes, maxInFlight: 1 }, async (ranks) => {
      const trip = planTrip({ ...shape, choose: (value) => Math.floor(value * 2) })
      const last = startTrip(ranks[2]!, trip)
      const errors = await Promise.all(ranks.slice(0, 2).map((rank) => failureOf(combineOf(rank, trip, soon))))
      await last
      for (const error of errors) {
        expect(error.code).toBe('ERR_MOE_EP_TIMEOUT')
        expect(error.message).toContain('intranode combine, slot 0: no results from rank 2')
      }
    })
  })

  test('after refusals: they name the rank that neither called nor refused', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const errors = await Promise.all(
        ranks.slice(0, 2).map(({ rank, buffer, stream }) => {
          const options = { stream, ...(rank === 0 && { timeoutMs: soon }) }
          return failureOf(buffer.refuseDispatch(new Error('nothing to send'), options))
        }),
      )
      for (const error of errors) {
        expect(error.code).toBe('ERR_MOE_EP_TIMEOUT')
        expect(error.message).toContain('intranode dispatch, refused by rank 0: no call from rank 2')
      }
      await failureOf(ranks[0]!.stream.synchronize())
      // Nobody waits any more, so a wrong call is its caller's own affair.
      const again = failureOf(ranks[0]!.buffer.dispatch([] as never, { stream: ranks[0]!.stream }))
      expect((await again).code).toBe('ERR_MOE_EP_ARGUMENT')
      await ranks[0]!.stream.synchronize()
    })
  })
})

describe('a failure of the group', () => {
  test.each(['dispatch', 'combine'])('ends a waiting %s long before its deadline, and stays', async (where) => {
    await withWorld(3, sizes, async (ranks) => {
      const trip = planTrip({ ...shape, choose: (value) => Math.floor(value * 3) })
      const waiting = ranks
        .slice(0, 2)
        .map((rank) => failureOf(where === 'dispatch' ? startTrip(rank, trip) : combineOf(rank, trip)))
      if (where === 'combine') (await startTrip(ranks[2]!, trip)).handle.lease.release()
      ranks[2]!.group.abort(new MoeEpError('ERR_MOE_EP_PEER_LOST', 'rank 2 is about to go'))
      const errors = await Promise.all(waiting)
      expect(codesOf(errors)).toEqual(Array(2).fill('ERR_MOE_EP_PEER_LOST'))
      await expectForever(ranks, 'ERR_MOE_EP_PEER_LOST', ['rank 2 is about to go'])
    })
  })
})

test('a stream that is aborted in a wait ends the others with a named error', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const trip = planTrip(shape)
    const waiting = failureOf(startTrip(ranks[2]!, trip))
    startTrip(ranks[1]!, trip).catch(() => {})
    // By then the dispatch of rank 1 waits for rank 0; a dispatch that had not begun would be dropped without a word.
    await sleep(1000)
    ranks[1]!.stream.abort()
    expect(await waiting).toMatchObject({
      code: 'ERR_MOE_EP_ABORTED',
      message: expect.stringContaining('rank 1 closed its stream'),
    })
    expect((await failureOf(startTrip(ranks[0]!, trip))).code).toBe('ERR_MOE_EP_ABORTED')
  })
})

test('work that failed earlier on the stream is what dispatch rejects with; the other ranks end at their deadline', async () => {
  await withWorld(2, sizes, async (ranks) => {
    ranks[0]!.stream.fail('ERR_MOE_EP_CHECK_FAILED', 'the gate is broken')
    const trip = planTrip({ ...shape, numTokens: [2, 2] }, { timeoutMs: soon })
    const errors = await Promise.all(ranks.map((rank) => failureOf(startTrip(rank, trip))))
    expect(errors[0]).toMatchObject({ code: 'ERR_MOE_EP_CHECK_FAILED', message: 'the gate is broken' })
    expect(errors[1]).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', message: expect.stringContaining('from rank 0') })
  })
})

test('a buffer that failed is rebuilt on the same group', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await failureOf(startTrip(ranks[0]!, planTrip(shape, { timeoutMs: soon })))
    const buffers = await Promise.all(ranks.map(({ group }) => createBuffer(group, sizes)))
    const rebuilt = ranks.map((rank, index) => ({ ...rank, buffer: buffers[index]! }))
    await expectRoundTrip(rebuilt, shape)
    expect(rebuilt.map(({ buffer }) => buffer.failure)).toEqual([undefined, undefined, undefined])
    for (const buffer of buffers) buffer.close()
  })
})
