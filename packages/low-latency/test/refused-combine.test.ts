import { errorCodes, type ErrorCode, Graph, MoeEpError, Tensor } from '@moe-ep/core'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { callsOf, expectTrip, refusedBy as refusal, shape, sizes, type TripOptions, unsupported } from './trips.js'
import { captureTogether, failureOf, numbersOf, type Rank, randomInputs, withWorld } from './world.js'

/** What ranks hear of a refused combine. */
const refusedBy = (rank: number, code: ErrorCode): object => refusal(rank, code, 'combine')

/** A dispatch of which some ranks refuse the combine, each with its code. Gives what the others fail with. */
async function refusedTrip(
  one: Rank,
  seed: number,
  refusals: ReadonlyMap<number, ErrorCode>,
  options: TripOptions = {},
): Promise<MoeEpError | undefined> {
  const { rank, stream, buffer } = one
  const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed }), options)
  const dispatched = dispatch()
  const code = refusals.get(rank)
  if (code !== undefined) {
    // Its hook is left to the refusal.
    buffer.refuseCombine(dispatched.handle, new MoeEpError(code, 'not today'), { stream })
    expect(buffer.freeSlots).toBe(2)
    await stream.synchronize()
    return undefined
  }
  dispatched.hook?.()
  combine(dispatched).hook?.()
  return failureOf(stream.synchronize())
}

describe.each([
  ['rank', true],
  ['rank', false],
  ['expert', false],
] as const)("protocol '%s', weights at the dispatch: %s", (protocol, weighted) => {
  test.each([
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ])('one rank refuses, and then all work on; LogFMT: %s, hooks: %s', async (useLogfmt, hooks) => {
    const options = { weighted, useLogfmt, hooks }
    await withWorld(3, { ...sizes, protocol }, async (ranks) => {
      await Promise.all(
        ranks.map(async (one) => {
          await expectTrip(one, 1, options)
          const error = await refusedTrip(one, 2, new Map([[1, unsupported.code]]), options)
          if (one.rank !== 1) expect(error).toMatchObject(refusedBy(1, unsupported.code))
          await expectTrip(one, 3, options)
          await expectTrip(one, 4, options)
        }),
      )
    })
  })
})

test('refusals one after the other in one slot, by one rank and by others', async () => {
  const code = 'ERR_MOE_EP_OUT_OF_MEMORY'
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        for (const [seed, refusing] of [1, 1, 0, 2, 2].entries()) {
          const error = await refusedTrip(one, seed, new Map([[refusing, code]]))
          if (one.rank !== refusing) expect(error).toMatchObject(refusedBy(refusing, code))
        }
        await expectTrip(one, 9)
      }),
    )
  })
})

test('of several ranks that refuse the lowest is named, whoever asks; when all do, nobody fails', async () => {
  const codes = ['ERR_MOE_EP_ABORTED', 'ERR_MOE_EP_UNSUPPORTED', 'ERR_MOE_EP_CAPACITY'] as const
  const refusing = (...ranks: number[]) => new Map(ranks.map((rank) => [rank, codes[rank]!]))
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        for (const [left, lowest] of [1, 0, 0].entries()) {
          const others = [0, 1, 2].filter((rank) => rank !== left)
          const error = await refusedTrip(one, left, refusing(...others))
          if (one.rank === left) expect(error).toMatchObject(refusedBy(lowest, codes[lowest]!))
        }
        for (const seed of [4, 5]) expect(await refusedTrip(one, seed, refusing(0, 1, 2))).toBeUndefined()
        await expectTrip(one, 9)
      }),
    )
  })
})

test('every code of ours travels; what is none of ours comes as an internal error', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        for (const [seed, code] of (Object.keys(errorCodes) as ErrorCode[]).entries()) {
          const error = await refusedTrip(one, seed, new Map([[2, code]]))
          if (one.rank !== 2) expect(error).toMatchObject(refusedBy(2, code))
        }
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 99 }))
        const dispatched = dispatch()
        if (one.rank === 2) return one.buffer.refuseCombine(dispatched.handle, 'out of luck', one)
        combine(dispatched)
        expect(await failureOf(one.stream.synchronize())).toMatchObject(refusedBy(2, 'ERR_MOE_EP_INTERNAL'))
      }),
    )
  })
})

test('who refuses does not write over what others still combine', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const inputs = randomInputs({ ...shape, seed: 1 })
    const dispatched = ranks.map((one) => callsOf(one, inputs).dispatch())
    const [refusing, ...others] = ranks as [Rank, ...Rank[]]
    refusing.buffer.refuseCombine(dispatched[0]!.handle, unsupported, refusing)
    // The refusal itself waits for nobody.
    await refusing.stream.synchronize()
    const next = callsOf(refusing, randomInputs({ ...shape, seed: 2 })).dispatch({ returnRecvHook: true })
    let sent = false
    const sending = next.event.synchronize().then(() => (sent = true))
    for (const { rank, stream } of others) {
      await stream.synchronize()
      await sleep(50)
      expect(sent).toBe(false)
      callsOf(ranks[rank]!, inputs).combine(dispatched[rank]!)
    }
    for (const { stream } of others)
      expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(0, unsupported.code))
    await sending
    refusing.buffer.refuseCombine(next.handle, unsupported, refusing)
    await Promise.all(others.map((one) => refusedTrip(one, 2, new Map())))
    await Promise.all(ranks.map((one) => expectTrip(one, 3)))
  })
})

test('where late ranks are masked, one that refuses is not', async () => {
  await withWorld(3, { ...sizes, masks: 'late' }, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        for (const seed of [1, 2]) {
          const error = await refusedTrip(one, seed, new Map([[1, unsupported.code]]))
          if (one.rank !== 1) expect(error).toMatchObject(refusedBy(1, unsupported.code))
        }
        await expectTrip(one, 3)
        const status = Tensor.empty([3], 'i32', one.buffer.device)
        one.buffer.queryMaskBuffer(status, one)
        await one.stream.synchronize()
        expect(await numbersOf(status)).toEqual([0, 0, 0])
      }),
    )
  })
})

test('a rank that dies meanwhile is masked by the next dispatch of one that refused', async () => {
  await withWorld(3, { ...sizes, masks: 'late' }, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer } = one
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 1 }))
        const dispatched = dispatch()
        await stream.synchronize()
        if (rank === 2) return
        const timeoutMs = 1000
        if (rank === 1) {
          buffer.refuseCombine(dispatched.handle, unsupported, one)
        } else {
          combine(dispatched, { timeoutMs })
          expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(1, unsupported.code))
        }
        // In two phases, each with a deadline of its own: what is late for the first is not for the other.
        const options = { timeoutMs, returnRecvHook: true }
        const { handle, hook } = callsOf(one, randomInputs({ ...shape, seed: 2 })).dispatch(options)
        hook!()
        await stream.synchronize()
        buffer.release(handle)
        const status = Tensor.empty([3], 'i32', buffer.device)
        buffer.queryMaskBuffer(status, one)
        await stream.synchronize()
        expect(await numbersOf(status)).toEqual([0, 0, 1])
      }),
    )
  })
})

test('a rank that is taken back after a dispatch without it is not asked for its results', async () => {
  const masks = { ...sizes, masks: 'manual' } as const
  await withWorld(3, masks, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer, group } = one
        if (rank !== 2) buffer.updateMaskBuffer(2, true, one)
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 1 }))
        const dispatched = dispatch()
        if (rank === 0) buffer.refuseCombine(dispatched.handle, unsupported, one)
        if (rank === 1) {
          combine(dispatched)
          expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(0, unsupported.code))
        }
        if (rank === 2) {
          expect(await failureOf(stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
          buffer.release(dispatched.handle)
        }
        await stream.synchronize()
        await group.barrier()
        buffer.cleanMaskBuffer(one)
        await expectTrip(one, 2)
      }),
    )
  })
})

test('what has ended, or never came about, is not refused', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer, group } = one
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 1 }))
        const combined = dispatch()
        combine(combined)
        buffer.refuseCombine(combined.handle, unsupported, one)
        await stream.synchronize()
        const released = dispatch()
        buffer.release(released.handle)
        buffer.refuseCombine(released.handle, unsupported, one)
        await stream.synchronize()
        await group.barrier()
        // A dispatch that failed on all ranks.
        const { handle } = dispatch({ numExperts: rank === 0 ? 5 : 7 })
        expect(await failureOf(stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
        if (rank === 0) buffer.refuseCombine(handle, unsupported, one)
        else buffer.release(handle)
        await stream.synchronize()
        await expectTrip(one, 2)
      }),
    )
  })
})

test('a dispatch of a graph is refused after its launch', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer } = one
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 1 }))
        let dispatched!: ReturnType<typeof dispatch>
        const graph = await captureTogether(one, () => Graph.capture(stream, () => void (dispatched = dispatch())))
        graph.launch(stream)
        if (rank === 1) {
          buffer.refuseCombine(dispatched.handle, unsupported, one)
        } else {
          combine(dispatched)
          expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(1, unsupported.code))
        }
        await expectTrip(one, 2)
        graph.close()
      }),
    )
  })
})

test('a stream that was closed tells nothing, and the default stream does', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed: 1 }))
        const dispatched = dispatch()
        if (one.rank === 1) {
          const stream = one.buffer.device.createStream()
          await stream.close()
          one.buffer.refuseCombine(dispatched.handle, unsupported, { stream })
        } else {
          combine(dispatched)
          expect(await failureOf(one.stream.synchronize())).toMatchObject(refusedBy(1, unsupported.code))
        }
        await expectTrip(one, 2)
      }),
    )
  })
})
