import { errorCodes, type ErrorCode, Graph, MoeEpError, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import type { LowLatencyDispatchOptions } from '../src/index.js'
import { callsOf, expectTrip, refusedBy as refusal, shape, sizes, type TripOptions, unsupported } from './trips.js'
import { captureTogether, codeOf, failureOf, numbersOf, type Rank, randomInputs, withWorld } from './world.js'

/** What ranks hear of a refused dispatch. */
const refusedBy = (rank: number, code: ErrorCode): object => refusal(rank, code, 'dispatch')

/** A dispatch that some ranks refuse, each with its code. Gives what the others fail with. */
async function refusedDispatch(
  one: Rank,
  seed: number,
  refusals: ReadonlyMap<number, ErrorCode>,
  options: TripOptions & { readonly more?: Partial<LowLatencyDispatchOptions> } = {},
): Promise<MoeEpError | undefined> {
  const { rank, stream, buffer } = one
  const code = refusals.get(rank)
  if (code !== undefined) {
    buffer.refuseDispatch(new MoeEpError(code, 'not today'), { stream, slot: 0 })
    expect(buffer.freeSlots).toBe(2)
    await stream.synchronize()
    return undefined
  }
  const { handle, hook } = callsOf(one, randomInputs({ ...shape, seed }), options).dispatch(options.more)
  hook?.()
  const error = await failureOf(stream.synchronize())
  buffer.release(handle)
  return error
}

const inWorld = (body: (one: Rank) => Promise<void>, more: Partial<Parameters<typeof withWorld>[1]> = {}) =>
  withWorld(3, { ...sizes, ...more }, async (ranks) => void (await Promise.all(ranks.map(body))))

describe.each(['rank', 'expert'] as const)("protocol '%s'", (protocol) => {
  test.each([false, true])('one rank refuses, and then all work on; hooks: %s', async (hooks) => {
    const options = { weighted: protocol === 'rank', hooks }
    await inWorld(
      async (one) => {
        await expectTrip(one, 1, options)
        const error = await refusedDispatch(one, 2, new Map([[1, unsupported.code]]), options)
        if (one.rank !== 1) expect(error).toMatchObject(refusedBy(1, unsupported.code))
        await expectTrip(one, 3, options)
        await expectTrip(one, 4, options)
      },
      { protocol },
    )
  })
})

test('refusals of dispatches and of combines one after the other in one slot', async () => {
  await inWorld(async (one) => {
    const { rank, stream, buffer } = one
    for (const [seed, refusing] of [1, 1, 0, 2].entries()) {
      const error = await refusedDispatch(one, seed, new Map([[refusing, unsupported.code]]))
      if (rank !== refusing) expect(error).toMatchObject(refusedBy(refusing, unsupported.code))
      const { dispatch, combine } = callsOf(one, randomInputs({ ...shape, seed }))
      const dispatched = dispatch()
      if (rank === refusing) buffer.refuseCombine(dispatched.handle, unsupported, one)
      else combine(dispatched)
      await (rank === refusing ? stream.synchronize() : failureOf(stream.synchronize()))
    }
    await expectTrip(one, 9)
  })
})

test('of several ranks that refuse the lowest is named; when all do, nobody fails', async () => {
  const codes = ['ERR_MOE_EP_ABORTED', 'ERR_MOE_EP_UNSUPPORTED', 'ERR_MOE_EP_CAPACITY'] as const
  const refusing = (...ranks: number[]) => new Map(ranks.map((rank) => [rank, codes[rank]!]))
  await inWorld(async (one) => {
    for (const [left, lowest] of [1, 0, 0].entries()) {
      const error = await refusedDispatch(one, left, refusing(...[0, 1, 2].filter((rank) => rank !== left)))
      if (one.rank === left) expect(error).toMatchObject(refusedBy(lowest, codes[lowest]!))
    }
    for (const seed of [4, 5]) expect(await refusedDispatch(one, seed, refusing(0, 1, 2))).toBeUndefined()
    await expectTrip(one, 9)
  })
})

test('every code of ours travels; what is none of ours comes as an internal error', async () => {
  await inWorld(async (one) => {
    const { rank, stream, buffer } = one
    for (const [seed, code] of (Object.keys(errorCodes) as ErrorCode[]).entries()) {
      const error = await refusedDispatch(one, seed, new Map([[2, code]]))
      if (rank !== 2) expect(error).toMatchObject(refusedBy(2, code))
    }
    if (rank === 2) return buffer.refuseDispatch('out of luck', { stream, slot: 0 })
    callsOf(one, randomInputs({ ...shape, seed: 99 })).dispatch()
    expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(2, 'ERR_MOE_EP_INTERNAL'))
  })
})

test('a refusal says more than arguments that differ', async () => {
  await inWorld(async (one) => {
    const more = { numExperts: one.rank === 0 ? 5 : 7 }
    const error = await refusedDispatch(one, 1, new Map([[1, unsupported.code]]), { more })
    if (one.rank !== 1) expect(error).toMatchObject(refusedBy(1, unsupported.code))
    await expectTrip(one, 2)
  })
})

test.each(['manual', 'late'] as const)(
  "with masks '%s', one that refuses is not masked, and a masked one not heard",
  async (masks) => {
    await inWorld(
      async (one) => {
        const { rank, stream, buffer, group } = one
        const refusing = new Map([[1, unsupported.code]])
        const error = await refusedDispatch(one, 1, refusing)
        if (rank !== 1) expect(error).toMatchObject(refusedBy(1, unsupported.code))
        const status = Tensor.empty([3], 'i32', buffer.device)
        buffer.queryMaskBuffer(status, one)
        await stream.synchronize()
        expect(await numbersOf(status)).toEqual([0, 0, 0])
        await group.barrier()
        if (rank !== 1) {
          buffer.updateMaskBuffer(1, true, one)
          const { handle } = callsOf(one, randomInputs({ ...shape, seed: 2 })).dispatch()
          await stream.synchronize()
          buffer.release(handle)
        } else {
          expect(await refusedDispatch(one, 2, refusing)).toBeUndefined()
        }
        await group.barrier()
        if (rank !== 1) buffer.cleanMaskBuffer(one)
        await expectTrip(one, 3)
      },
      { masks },
    )
  },
)

test('a slot is taken like that of a dispatch', async () => {
  await inWorld(async (one) => {
    const { rank, stream, buffer } = one
    const inputs = randomInputs({ ...shape, seed: 1 })
    const held = callsOf(one, inputs).dispatch()
    expect(codeOf(() => buffer.refuseDispatch(unsupported, { stream, slot: 0 }))).toBe('ERR_MOE_EP_NO_FREE_SLOT')
    // The lowest that is free.
    if (rank === 1) {
      buffer.refuseDispatch(unsupported, { stream })
    } else {
      const { handle } = callsOf(one, inputs).dispatch({ slot: 1 })
      expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(1, unsupported.code))
      buffer.release(handle)
    }
    callsOf(one, inputs).combine(held)
    await stream.synchronize()
    await expectTrip(one, 2)
  })
})

test('wrong arguments are refused, and leave the slot free', async () => {
  await inWorld(async (one) => {
    const { buffer } = one
    for (const wrong of [{ slot: 2 }, { slot: -1 }, { timeoutMs: 0 }])
      expect(codeOf(() => buffer.refuseDispatch(unsupported, wrong))).toBe('ERR_MOE_EP_ARGUMENT')
    expect(buffer.freeSlots).toBe(2)
    await expectTrip(one, 1)
    await one.group.barrier()
    buffer.close()
    expect(codeOf(() => buffer.refuseDispatch(unsupported))).toBe('ERR_MOE_EP_RELEASED')
  })
})

test('what is captured is not refused, and a closed stream leaves it to the default stream', async () => {
  await inWorld(async (one) => {
    const { rank, stream, buffer } = one
    const refuse = (): void => buffer.refuseDispatch(unsupported, { stream, slot: 0 })
    const graph = await captureTogether(one, () => Graph.capture(stream, refuse))
    expect(buffer.freeSlots).toBe(2)
    graph.launch(stream)
    await expectTrip(one, 1)
    graph.close()
    if (rank === 1) {
      const closed = buffer.device.createStream()
      await closed.close()
      buffer.refuseDispatch(unsupported, { stream: closed, slot: 0 })
    } else {
      const { handle } = callsOf(one, randomInputs({ ...shape, seed: 2 })).dispatch()
      expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(1, unsupported.code))
      buffer.release(handle)
    }
    await expectTrip(one, 3)
  })
})

test('who refuses again waits until the others have heard of it, no longer than its deadline', async () => {
  await withWorld(2, sizes, async ([first]) => {
    const { buffer, stream } = first!
    buffer.refuseDispatch(unsupported, { stream, slot: 0 })
    await stream.synchronize()
    buffer.refuseDispatch(unsupported, { stream, slot: 0, timeoutMs: 100 })
    const error = await failureOf(stream.synchronize())
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', message: expect.stringContaining('from rank 1') })
  })
})
