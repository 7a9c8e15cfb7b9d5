import { Graph, MoeEpError, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { thrownBy } from '../../transport/test/symmetric/world.js'
import { type CombineOptions, maxGroupedRows } from '../src/index.js'
import { enqueued, expectRefused, never } from './one-wrong.js'
import { expectRoundTrip, planTrip, startTrip } from './round-trip.js'
import { type InputShape, type Rank, withWorld } from './world.js'

const shape: InputShape = { numTokens: [5, 0, 8], hidden: 32, topk: 3, numExperts: 7, dtype: 'bf16', seed: 11 }
const sizes = { hidden: 32, maxTokensPerRank: 8, maxElementBytes: 4, timeoutMs: never }
const zeros = (dims: readonly number[], dtype: 'bf16' | 'f16' | 'f32' | 'fp8e4m3' = 'bf16'): Tensor =>
  Tensor.zeros(dims, dtype)
const expectFree = (ranks: readonly Rank[]): void =>
  expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual(ranks.map(() => 2))

describe('a combine that is wrong on one rank is refused on all, and ends all leases', () => {
  const cases: [string, string, (rows: number, tokens: number) => { x?: Tensor; options?: CombineOptions }][] = [
    ['rows', 'x', (rows) => ({ x: zeros([rows + 1, 32]) })],
    ['fp8', 'x', (rows) => ({ x: zeros([rows, 32], 'fp8e4m3') })],
    ['short', '16 bytes', (rows) => ({ x: zeros([rows, 4]) })],
    ['long', 'at most 128 bytes', (rows) => ({ x: zeros([rows, 36], 'f32') })],
    ['no tensor', 'a Tensor', () => ({ x: [] as never })],
    ['out', 'out', (_, tokens) => ({ options: { out: zeros([tokens + 1, 32]) } })],
    ['dtype of out', 'out', (_, tokens) => ({ options: { out: zeros([tokens, 32], 'f16') } })],
    ['weights', 'topkWeights', (rows) => ({ options: { topkWeights: zeros([rows + 1, 3], 'f32') } })],
    ['topk', 'topk', (rows) => ({ options: { topkWeights: zeros([rows, 33], 'f32') } })],
    ['bias', 'bias', (_, tokens) => ({ options: { bias: zeros([tokens, 16]) } })],
    ['three biases', 'at most two', (_, tokens) => ({ options: { bias: Array<Tensor>(3).fill(zeros([tokens, 32])) } })],
    ['stream', 'stream: ', () => ({ options: { stream: {} as never } })],
    ['timeout', 'timeoutMs', () => ({ options: { timeoutMs: -1 } })],
  ]

  test.each([
    ['when all have rows of all', shape],
    // The others would have all that they need.
    ['when the wrong rank has rows of nobody', { ...shape, choose: (value: number) => Math.floor(value * 3) }],
  ])('%s', async (_, routed: InputShape) => {
    await withWorld(3, sizes, async (ranks) => {
      for (const [, text, wrongCall] of cases) {
        const received = await Promise.all(ranks.map((rank) => startTrip(rank, planTrip(routed))))
        await expectRefused(ranks, { wrong: 2, code: 'ERR_MOE_EP_ARGUMENT', text }, (rank, isWrong) => {
          const { handle, recvX } = received[rank.rank]!
          const { x = recvX, options = {} } = isWrong ? wrongCall(recvX.shape[0]!, handle.plan.numTokens) : {}
          return enqueued(rank, () => rank.buffer.combine(x, handle, { stream: rank.stream, ...options }))
        })
        expectFree(ranks)
      }
      await expectRoundTrip(ranks, shape)
    })
  })

  test('from grouped rows', async () => {
    const capacity = maxGroupedRows({ maxTokensPerRank: 8, numRanks: 3, numExperts: 7, topk: 3, expertAlignment: 4 })
    await withWorld(3, { ...sizes, capacity }, async (ranks) => {
      for (const wrong of [0, 1, 2]) {
        const options = { topkIdx: Tensor.zeros([2, 3], 'i64'), numExperts: 7, expertAlignment: 4 }
        const received = await Promise.all(
          ranks.map(({ buffer, stream }) => buffer.dispatchGrouped(zeros([2, 32]), { ...options, stream })),
        )
        const refused = { wrong, code: 'ERR_MOE_EP_ARGUMENT', text: 'topkWeights' } as const
        await expectRefused(ranks, refused, (rank, isWrong) => {
          const { handle, recvX } = received[rank.rank]!
          const topkWeights = zeros([isWrong ? 3 : 2, 3], 'f32')
          return enqueued(rank, () => rank.buffer.combineGrouped(recvX, handle, { topkWeights, stream: rank.stream }))
        })
        expectFree(ranks)
      }
      await expectRoundTrip(ranks, shape)
    })
  })
})

test('refuseCombine: refuses for a caller whose experts failed, once', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const received = await Promise.all(ranks.map((rank) => startTrip(rank, planTrip(shape))))
    const error = new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'no such GEMM')
    await expectRefused(ranks, { wrong: 0, code: error.code, text: error.message }, async (rank, isWrong) => {
      const { handle, recvX } = received[rank.rank]!
      if (!isWrong) return enqueued(rank, () => rank.buffer.combine(recvX, handle, { stream: rank.stream }))
      rank.buffer.refuseCombine(handle, error, { stream: rank.stream })
      rank.buffer.refuseCombine(handle, error, { stream: rank.stream })
      throw error
    })
    expectFree(ranks)
    await expectRoundTrip(ranks, shape)
  })
})

test('what is refused while all capture is refused there alone, and nobody waits', async () => {
  await withWorld(3, sizes, async (ranks) => {
    const received = await Promise.all(ranks.map((rank) => startTrip(rank, planTrip(shape))))
    await Promise.all(received.map(({ event }) => event.synchronize()))
    for (const { rank, buffer, stream } of ranks) {
      const { handle, recvX } = received[rank]!
      Graph.capture(stream, () => {
        if (rank !== 1) return void buffer.combine(recvX, handle, { stream })
        expect(thrownBy(() => buffer.combine(zeros([99, 32]), handle, { stream })).code).toBe('ERR_MOE_EP_ARGUMENT')
      })
    }
    expectFree(ranks)
    await expectRoundTrip(ranks, shape)
  })
})

test('a handle of another buffer tells nobody anything: its lease goes on', async () => {
  await withWorld(3, sizes, async (ranks) => {
    await withWorld(3, sizes, async (others) => {
      const received = await Promise.all(ranks.map((rank) => startTrip(rank, planTrip(shape))))
      const { handle, recvX } = received[0]!
      expect(thrownBy(() => others[0]!.buffer.combine(recvX, handle)).code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(thrownBy(() => others[0]!.buffer.refuseCombine(handle, new Error('no'))).code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(handle.lease.active).toBe(true)
      await expectRoundTrip(others, shape)
    })
  })
})
