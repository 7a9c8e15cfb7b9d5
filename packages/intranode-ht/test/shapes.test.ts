import { type DType, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { roundTo, expectRoundTrip } from './round-trip.js'
import { type InputShape, randomNumbers, rowsOf, withWorld } from './world.js'
import { repeats } from '../../../tooling/vitest/repeats.js'

const base: InputShape = { numTokens: [], hidden: 16, topk: 4, numExperts: 16, dtype: 'bf16', seed: 1 }
const spread = (numRanks: number, most = 9): number[] =>
  Array.from({ length: numRanks }, (_, rank) => (rank * 5 + 4) % (most + 1))

describe.each([1, 2, 3, 4, 5, 7, 8])('%i ranks', (numRanks) => {
  test('all shapes of routing', async () => {
    const shape = { ...base, numTokens: spread(numRanks) }
    const zeros = Array<number>(numRanks).fill(0)
    await withWorld(numRanks, { hidden: 16, maxTokensPerRank: 9 }, async (ranks) => {
      await expectRoundTrip(ranks, shape)
      // fewer experts than ranks, and numbers that do not divide
      for (const numExperts of [1, 3, 5, 13]) await expectRoundTrip(ranks, { ...shape, numExperts })
      // nothing to send: nowhere, and on single ranks only
      await expectRoundTrip(ranks, { ...shape, numTokens: zeros })
      await expectRoundTrip(ranks, { ...shape, numTokens: zeros.map((_, rank) => (rank === numRanks - 1 ? 9 : 0)) })
      await expectRoundTrip(ranks, { ...shape, choose: () => -1 })
      // all to one expert, the same expert in all slots of a token
      await expectRoundTrip(ranks, { ...shape, choose: () => 15 })
      await expectRoundTrip(ranks, { ...shape, topk: 32, choose: (value) => Math.floor(value * 2) })
      await expectRoundTrip(ranks, { ...shape, topk: 1 })
    })
  })
})

test('calls of changing shapes on one buffer, without cleaning', { timeout: 120_000 }, async () => {
  const random = randomNumbers(42)
  const pick = <T>(choices: readonly T[]): T => choices[Math.floor(random() * choices.length)]!
  const yes = (): boolean => random() < 0.5
  await withWorld(
    3,
    { hidden: 272, maxTokensPerRank: 9, maxElementBytes: 4, threads: (rank) => rank + 1 },
    async (ranks) => {
      for (let call = 0; call < repeats(300); call++) {
        const shape: InputShape = {
          ...base,
          ...{
            dtype: pick<DType>(['bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8']),
            hidden: pick([16, 48, 128, 144, 272]),
          },
          ...{ topk: pick([1, 2, 6, 8]), numExperts: pick([1, 2, 3, 7, 16]), seed: call },
          numTokens: ranks.map(() => pick([0, 1, 2, 7, 9])),
        }
        const options = {
          idDtype: pick(['i32', 'i64'] as const),
          weights: yes(),
          scales: yes(),
          zeroCopy: yes(),
          slot: pick([0, 1]),
        }
        const plans = await expectRoundTrip(ranks, shape, options)
        if (call % 3 === 0)
          await expectRoundTrip(ranks, shape, { ...options, plans, combineDtype: pick(['bf16', 'f16', 'f32']) })
      }
      expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual([2, 2, 2])
    },
  )
})

test('the widest rows: fp8 with scales of a short last group, combined as bf16', async () => {
  const shape: InputShape = { ...base, hidden: 7168 - 16, dtype: 'fp8e4m3', numTokens: [3, 0, 2], topk: 8 }
  await withWorld(3, { hidden: shape.hidden, maxTokensPerRank: 3 }, async (ranks) => {
    await expectRoundTrip(ranks, shape, { scales: true, combineDtype: 'bf16' })
    await expectRoundTrip(ranks, { ...shape, hidden: 2880, dtype: 'bf16' })
  })
})

test('a plan gives what a fresh dispatch gives, for other rows, dtypes and sizes, as often as wanted', async () => {
  const shape: InputShape = { ...base, numTokens: [4, 0, 9], hidden: 64 }
  await withWorld(3, { hidden: 64, maxTokensPerRank: 9, maxElementBytes: 4 }, async (ranks) => {
    const plans = await expectRoundTrip(ranks, shape)
    // Only the rows depend on hidden and dtype: what is drawn first, the routing, must be the same.
    const choose = routingOf(shape)
    for (const other of [{ dtype: 'f32' as const }, { hidden: 16 }, { dtype: 'u8' as const }, { seed: 7 }, {}]) {
      const fresh = { ...shape, ...other, choose: choose() }
      const plansOfFresh = await expectRoundTrip(ranks, fresh, { scales: true })
      const fields = (all: typeof plans) =>
        Promise.all(
          all.flatMap((plan) =>
            [plan.sendHead, plan.rankPrefixMatrix, plan.channelPrefixMatrix, plan.isTokenInRank].map(rowsOf),
          ),
        )
      expect(await fields(plansOfFresh)).toEqual(await fields(plans))
      await expectRoundTrip(ranks, { ...fresh, choose: choose() }, { plans, scales: true })
      await expectRoundTrip(ranks, { ...fresh, choose: choose() }, { plans, slot: 1, zeroCopy: true })
    }
  })
})

/** A source of experts that repeats the routing which `shape` draws, whatever rows are drawn with it. */
function routingOf(shape: InputShape): () => () => number {
  const random = randomNumbers(shape.seed)
  const recorded: number[] = []
  for (const tokens of shape.numTokens) {
    for (let i = 0; i < tokens * shape.hidden; i++) random()
    for (let i = 0; i < tokens * shape.topk; i++)
      recorded.push(random() < 0.1 ? -1 : Math.floor(random() * shape.numExperts))
    for (let i = 0; i < tokens * shape.topk; i++) random()
  }
  return () => {
    let next = 0
    return () => recorded[next++]!
  }
}

test('counts per expert are rounded up to the alignment, channels are as many as asked for', async () => {
  await withWorld(2, { hidden: 8, maxTokensPerRank: 4 }, async (ranks) => {
    const plans = await Promise.all(
      ranks.map(async ({ buffer, stream }) => {
        const topkIdx = Tensor.from([0, 1, 0, 3, 0, 0, -1, 2], [4, 2], 'i64', stream.device)
        const x = Tensor.zeros([4, 8], 'bf16', stream.device)
        const got = await buffer.dispatch(x, { topkIdx, numExperts: 4, expertAlignment: 8, numChannels: 2, stream })
        got.handle.lease.release()
        return { counts: [...got.numRecvTokensPerExpert], plan: got.handle.plan }
      }),
    )
    // Expert 0 is selected 4 times a rank (twice by one token), experts 1, 2 and 3 once.
    expect(plans.map(({ counts }) => counts)).toEqual([
      [8, 8],
      [8, 8],
    ])
    expect(await rowsOf(plans[1]!.plan.channelPrefixMatrix)).toEqual([
      [2, 3],
      [1, 2],
    ])
    expect(await rowsOf(plans[1]!.plan.recvChannelPrefixMatrix)).toEqual([
      [1, 2],
      [1, 2],
    ])
    expect(await rowsOf(plans[1]!.plan.sendHead)).toEqual([
      [3, -1],
      [4, 2],
      [5, -1],
      [-1, 3],
    ])
    expect(await rowsOf(plans[0]!.plan.rankPrefixMatrix)).toEqual([
      [3, 2],
      [6, 4],
    ])
  })
})

test.each<DType>(['bf16', 'f16', 'f32'])(
  'special values of %s: one canonical NaN, signs of zero and infinities as f32 sums give them',
  async (dtype) => {
    // Rank 0 holds expert 0, rank 1 expert 1: each token has one row on both, or on one only.
    const values = [Number.NaN, -Number.NaN, Infinity, -Infinity, -0, 0, 1, 65504]
    const pairs = values.flatMap((a) => values.map((b) => [a, b] as const))
    const canonical = { bf16: 0x7fff, f16: 0x7fff, f32: 0x7fffffff } as const
    await withWorld(2, { hidden: 8, maxTokensPerRank: 2 * pairs.length, maxElementBytes: 4 }, async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, buffer, stream }) => {
          const tokens = rank === 0 ? pairs.length + values.length : 0
          const ids = [...pairs.flatMap(() => [0, 1]), ...values.flatMap(() => [1, -1])].slice(0, tokens * 2)
          const options = { topkIdx: Tensor.from(ids, [tokens, 2], 'i64', stream.device), numExperts: 2, stream }
          const { handle } = await buffer.dispatch(Tensor.zeros([tokens, 8], dtype, stream.device), options)
          const own = [...pairs.map((pair) => pair[rank]!), ...(rank === 1 ? values : [])]
          const y = Tensor.from(
            own.flatMap((value) => Array<number>(8).fill(value)),
            [own.length, 8],
            dtype,
            stream.device,
          )
          const { combinedX } = buffer.combine(y, handle, { stream })
          await stream.synchronize()
          const sums = [...pairs.map(([a, b]) => Math.fround(a + b)), ...values].slice(0, tokens)
          const expected = roundTo(dtype, sums)
          expect(await rowsOf(combinedX)).toEqual(expected.map((sum) => Array<number>(8).fill(sum)))
          const bits = new (dtype === 'f32' ? Uint32Array : Uint16Array)((await combinedX.read()).buffer as ArrayBuffer)
          expected.forEach((sum, token) => {
            if (Number.isNaN(sum)) expect(bits[token * 8]).toBe(canonical[dtype as keyof typeof canonical])
          })
        }),
      )
    })
  },
)

test('bytes of rows are copied as they are', async () => {
  const bits = Uint16Array.from({ length: 65536 }, (_, value) => value)
  await withWorld(2, { hidden: 65536, maxTokensPerRank: 1 }, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, buffer, stream }) => {
        const topkIdx = Tensor.from(rank === 0 ? [1] : [], [1 - rank, 1], 'i32', stream.device)
        const x = Tensor.copyOf(rank === 0 ? bits : new Uint16Array(0), [1 - rank, 65536], 'bf16', stream.device)
        const got = await buffer.dispatch(x, { topkIdx, numExperts: 2, stream })
        await got.event.synchronize()
        expect(await got.recvX.read()).toEqual(rank === 1 ? bits : new Uint16Array(0))
        got.handle.lease.release()
      }),
    )
  })
})
