import { type MoeEpError, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { callsOf, refusedBy, shape, sizes, unsupported } from './trips.js'
import { failureOf, numbersOf, type Rank, randomInputs, withWorld } from './world.js'

const inputs = randomInputs({ ...shape, seed: 1 })
const masksOut = (rank: number): object => ({
  code: 'ERR_MOE_EP_MISMATCH',
  message: `low-latency dispatch: rank ${rank} is masked by other ranks`,
})

/** The masked ranks, or what agree fails with. */
const agreed = ({ buffer, stream }: Rank): Promise<unknown> => buffer.agree({ stream }).catch((error: unknown) => error)

/** A layer of the ranks that are left, which masks.test.ts looks into. */
async function goOn(one: Rank): Promise<void> {
  const { dispatch, combine } = callsOf(one, inputs)
  combine(dispatch())
  await one.stream.synchronize()
  expect(one.buffer.freeSlots).toBe(2)
}

/** Dispatches alone, and gives what that fails with. */
async function failedDispatch(one: Rank): Promise<MoeEpError> {
  const { handle } = callsOf(one, inputs).dispatch()
  const error = await failureOf(one.stream.synchronize())
  one.buffer.release(handle)
  return error
}

// Nobody may have to wait for the deadline: a rank that did would end as a test that takes too long.
describe.each(['manual', 'late'] as const)("ranks that agree, masks '%s', leave together", (masks) => {
  const inWorld = (body: (ranks: readonly [Rank, Rank, Rank]) => Promise<void>): Promise<void> =>
    withWorld(3, { ...sizes, masks }, (ranks) => body(ranks as unknown as readonly [Rank, Rank, Rank]))

  test('where a rank that is masked masks another one', async () => {
    await inWorld(async (ranks) => {
      const [first, second, third] = ranks
      first.buffer.updateMaskBuffer(2, true, first)
      third.buffer.updateMaskBuffer(1, true, third)
      const [a, b, c] = await Promise.all(ranks.map(agreed))
      expect([a, b]).toEqual([[2], [2]])
      expect(c).toMatchObject(masksOut(2))
      await Promise.all([first, second].map(goOn))
    })
  })

  test('where a rank that is masked dispatches', async () => {
    await inWorld(async ([first, second, third]) => {
      second.buffer.updateMaskBuffer(0, true, second)
      const [error, b, c] = await Promise.all([failedDispatch(first), agreed(second), agreed(third)])
      expect(error.code).toBe('ERR_MOE_EP_MISMATCH')
      expect([b, c]).toEqual([[0], [0]])
      await Promise.all([second, third].map(goOn))
    })
  })

  test('where a rank that is masked refuses', async () => {
    await inWorld(async ([first, second, third]) => {
      first.buffer.updateMaskBuffer(2, true, first)
      third.buffer.refuseDispatch(unsupported, { stream: third.stream, slot: 0 })
      expect(await Promise.all([first, second].map(agreed))).toEqual([[2], [2]])
      await third.stream.synchronize()
      await Promise.all([first, second].map(goOn))
    })
  })

  test('where a rank that nobody masks refuses', async () => {
    await inWorld(async (ranks) => {
      const [first, second, third] = ranks
      third.buffer.refuseDispatch(unsupported, { stream: third.stream, slot: 0 })
      for (const error of await Promise.all([first, second].map(agreed)))
        expect(error).toMatchObject(refusedBy(2, unsupported.code, 'dispatch'))
      await Promise.all(ranks.map(goOn))
    })
  })

  test('where masks go round', async () => {
    await inWorld(async (ranks) => {
      for (const { rank, buffer, stream } of ranks) buffer.updateMaskBuffer((rank + 1) % 3, true, { stream })
      const outcomes = await Promise.all(ranks.map(agreed))
      for (const [rank, outcome] of outcomes.entries()) expect(outcome).toMatchObject(masksOut(rank))
    })
  })

  test('where only some have heard yet of the layer that failed', async () => {
    await inWorld(async (ranks) => {
      const [first, second, third] = ranks
      second.buffer.updateMaskBuffer(2, true, second)
      const handles = ranks.map((one) => callsOf(one, inputs).dispatch().handle)
      expect(await failureOf(first.stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
      ranks.forEach(({ buffer }, rank) => buffer.release(handles[rank]!))
      const [a, b, c] = await Promise.all(ranks.map(agreed))
      expect([a, b]).toEqual([[2], [2]])
      // Who masks it does not wait for it, so it may find heads of two dispatches side by side.
      expect(c).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
      await third.stream.synchronize()
      await Promise.all([first, second].map(goOn))
    })
  })

  test('where one has not heard yet of a layer that failed for another reason', async () => {
    await inWorld(async (ranks) => {
      const wild = inputs.map((input, rank) =>
        rank === 0 ? { ...input, topkIdx: input.topkIdx.map(() => [99, 0, 0]) } : input,
      )
      const handles = ranks.map((one) => callsOf(one, wild).dispatch().handle)
      const [first, second, third] = ranks
      for (const { stream } of [first, third])
        expect(await failureOf(stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT' })
      ranks.forEach(({ buffer }, rank) => buffer.release(handles[rank]!))
      const [a, b, c] = await Promise.all(ranks.map(agreed))
      expect(b).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining('expert 99') })
      for (const other of [a, c]) expect(other).toMatchObject(refusedBy(1, 'ERR_MOE_EP_ARGUMENT', 'dispatch'))
      await second.stream.synchronize()
      await Promise.all(ranks.map(goOn))
    })
  })
})

test('a dispatch that one rank refuses settles masks where late ranks are masked, as any that fails does', async () => {
  await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
    ranks[1]!.buffer.updateMaskBuffer(3, true, ranks[1])
    ranks[2]!.buffer.refuseDispatch(unsupported, { stream: ranks[2]!.stream, slot: 0 })
    const four = randomInputs({ ...shape, numTokens: [3, 2, 4, 1], seed: 1 })
    await Promise.all(
      [0, 1, 3].map(async (rank) => {
        const { stream, buffer } = ranks[rank]!
        const { handle } = callsOf(ranks[rank]!, four).dispatch()
        expect(await failureOf(stream.synchronize())).toMatchObject(refusedBy(2, unsupported.code, 'dispatch'))
        buffer.release(handle)
        const status = Tensor.empty([4], 'i32', buffer.device)
        buffer.queryMaskBuffer(status, { stream })
        await stream.synchronize()
        expect(await numbersOf(status)).toEqual([0, 0, 0, rank === 3 ? 0 : 1])
      }),
    )
    // Who refused has heard nothing.
    const outcomes = await Promise.all(ranks.map(agreed))
    expect(outcomes.slice(0, 3)).toEqual([[3], [3], [3]])
    expect(outcomes[3]).toMatchObject(masksOut(3))
  })
})
