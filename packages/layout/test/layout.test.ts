import { getDevice, MoeEpError, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  getChannelPrefixMatrix,
  getDispatchLayout,
  getRankPrefixMatrix,
  linearPlacement,
  reference,
} from '../src/index.js'

const device = getDevice('cpu')

interface Case {
  readonly numExperts: number
  readonly numRanks: number
  readonly ranksPerNode: number
  readonly topkIdx: number[][]
}

const cases: fc.Arbitrary<Case> = fc
  .record({
    numExperts: fc.integer({ min: 1, max: 40 }),
    numRanks: fc.integer({ min: 1, max: 9 }),
    topk: fc.integer({ min: 1, max: 9 }),
  })
  .chain(({ numExperts, numRanks, topk }) =>
    fc.record({
      numExperts: fc.constant(numExperts),
      numRanks: fc.constant(numRanks),
      ranksPerNode: fc.integer({ min: 1, max: numRanks }),
      topkIdx: fc.oneof<fc.Arbitrary<number[][]>[]>(
        fc.array(fc.array(fc.integer({ min: -1, max: numExperts - 1 }), { minLength: topk, maxLength: topk }), {
          maxLength: 60,
        }),
        // one hot expert, and tokens without any
        fc.constant([Array<number>(topk).fill(numExperts - 1), Array<number>(topk).fill(-1)]),
      ),
    }),
  )

describe('getDispatchLayout', () => {
  test('equals the reference', async () => {
    await fc.assert(
      fc.asyncProperty(
        cases,
        fc.constantFrom('i32' as const, 'i64' as const),
        async ({ topkIdx, ...options }, dtype) => {
          const topk = topkIdx[0]?.length ?? 1
          const layout = getDispatchLayout(Tensor.from(topkIdx.flat(), [topkIdx.length, topk], dtype), options)
          await device.defaultStream.synchronize()
          const expected = reference.getDispatchLayout(topkIdx, options)
          expect(layout.numTokensPerRank.data).toEqual(expected.numTokensPerRank)
          expect(layout.numTokensPerRdmaRank?.data).toEqual(expected.numTokensPerRdmaRank)
          expect(layout.numTokensPerExpert.data).toEqual(expected.numTokensPerExpert)
          expect(layout.isTokenInRank.data).toEqual(expected.isTokenInRank)
        },
      ),
    )
  })

  test.each([
    [-2, 0],
    [4, 5],
  ])('refuses the id %i at the next await, naming its place', async (id, position) => {
    const ids = [0, 1, 2, 3, 0, 1]
    ids[position] = id
    getDispatchLayout(Tensor.from(ids, [3, 2], 'i64'), { numExperts: 4, numRanks: 2 })
    const error = await device.defaultStream.synchronize().catch((reason: unknown) => reason)
    expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_ARGUMENT')).toBe(true)
    expect((error as Error).message).toContain(
      `received ${id} for token ${Math.floor(position / 2)}, slot ${position % 2}`,
    )
  })

  test.each([
    ['dtype', () => Tensor.zeros([2, 2], 'f32'), {}],
    ['shape', () => Tensor.zeros([4], 'i64'), {}],
    ['topk', () => Tensor.zeros([1, 33], 'i64'), {}],
    ['topk zero', () => Tensor.zeros([1, 0], 'i64'), {}],
    ['experts', () => Tensor.zeros([2, 2], 'i64'), { numExperts: 0 }],
    ['ranks', () => Tensor.zeros([2, 2], 'i64'), { numRanks: 1.5 }],
    ['ranksPerNode', () => Tensor.zeros([2, 2], 'i64'), { ranksPerNode: 3 }],
  ])('refuses a bad %s before anything is enqueued', (_, topkIdx, options) => {
    const call = (): unknown => getDispatchLayout(topkIdx(), { numExperts: 4, numRanks: 2, ...options })
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })
})

describe('prefix matrices', () => {
  test('of ranks equal the reference', async () => {
    const matrices = fc
      .integer({ min: 1, max: 9 })
      .chain((n) => fc.array(fc.array(fc.nat(5000), { minLength: n, maxLength: n }), { minLength: n, maxLength: n }))
    await fc.assert(
      fc.asyncProperty(matrices, async (counts) => {
        const out = getRankPrefixMatrix(Tensor.from(counts.flat(), [counts.length, counts.length], 'i32'))
        await device.defaultStream.synchronize()
        expect([...out.data]).toEqual(reference.getRankPrefixMatrix(counts).flat())
      }),
    )
  })

  test('of channels equal the reference', async () => {
    const inputs = fc.integer({ min: 1, max: 9 }).chain((ranks) =>
      fc.record({
        ranks: fc.constant(ranks),
        numChannels: fc.integer({ min: 1, max: 12 }),
        inRank: fc.array(fc.array(fc.boolean(), { minLength: ranks, maxLength: ranks }), { maxLength: 50 }),
      }),
    )
    await fc.assert(
      fc.asyncProperty(inputs, async ({ ranks, numChannels, inRank }) => {
        const out = getChannelPrefixMatrix(Tensor.from(inRank.flat().map(Number), [inRank.length, ranks], 'bool'), {
          numChannels,
        })
        await device.defaultStream.synchronize()
        expect([...out.data]).toEqual(reference.getChannelPrefixMatrix(inRank, ranks, numChannels).flat())
      }),
    )
  })
})

test('linear placement gives every expert to exactly one rank, in blocks that differ by one at most', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 64 }), (experts, ranks) => {
      const placement = linearPlacement(experts, ranks)
      const sizes = Array.from(
        { length: ranks },
        (_, rank) => placement.rangeOf(rank).end - placement.rangeOf(rank).begin,
      )
      expect(sizes.reduce((sum, size) => sum + size)).toBe(experts)
      expect(Math.max(...sizes) - Math.min(...sizes)).toBeLessThanOrEqual(1)
      expect(sizes).toEqual([...sizes].sort((a, b) => b - a))
      for (let expert = 0; expert < experts; expert++) {
        const { begin, end } = placement.rangeOf(placement.rankOf(expert))
        expect(expert >= begin && expert < end).toBe(true)
      }
    }),
  )
})
