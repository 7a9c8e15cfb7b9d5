import { getDefaultDevice, MoeEpError, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { repeats } from '../../../tooling/vitest/repeats.js'
import {
  type DispatchLayout,
  getChannelPrefixMatrix,
  getDispatchLayout,
  getRankPrefixMatrix,
  linearPlacement,
  reference,
} from '../src/index.js'
import { native } from '../src/native.js'

// The same cases on every device: MOE_EP_DEVICE names it.
const device = getDefaultDevice()

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

async function readLayout(layout: DispatchLayout): Promise<reference.ReferenceDispatchLayout> {
  return {
    numTokensPerRank: (await layout.numTokensPerRank.read()) as Int32Array,
    numTokensPerRdmaRank: (await layout.numTokensPerRdmaRank?.read()) as Int32Array | undefined,
    numTokensPerExpert: (await layout.numTokensPerExpert.read()) as Int32Array,
    isTokenInRank: (await layout.isTokenInRank.read()) as Uint8Array,
  }
}

/** The same ids every time, scattered over [-1, numExperts). */
function scatteredIds(numTokens: number, topk: number, numExperts: number): number[][] {
  let state = 1
  const next = (): number => (state = (state * 48_271) % 2_147_483_647)
  return Array.from({ length: numTokens }, () => Array.from({ length: topk }, () => (next() % (numExperts + 1)) - 1))
}

describe('getDispatchLayout', () => {
  test('equals the reference', async () => {
    await fc.assert(
      fc.asyncProperty(
        cases,
        fc.constantFrom('i32' as const, 'i64' as const),
        async ({ topkIdx, ...options }, dtype) => {
          const topk = topkIdx[0]?.length ?? 1
          const layout = getDispatchLayout(Tensor.from(topkIdx.flat(), [topkIdx.length, topk], dtype), options)
          expect(await readLayout(layout)).toEqual(reference.getDispatchLayout(topkIdx, options))
        },
      ),
      { numRuns: repeats(100) },
    )
  })

  test.each([
    { numTokens: 4096, topk: 8, numExperts: 256, numRanks: 8 },
    { numTokens: 2050, topk: 6, numExperts: 257, numRanks: 72, ranksPerNode: 8 },
    { numTokens: 300, topk: 32, numExperts: 32, numRanks: 33, ranksPerNode: 5 },
    { numTokens: 300, topk: 1, numExperts: 3, numRanks: 1, ranksPerNode: 1 },
    // more experts than fit into a multiprocessor's memory
    { numTokens: 40, topk: 9, numExperts: 60_000, numRanks: 5, ranksPerNode: 2 },
    { numTokens: 0, topk: 2, numExperts: 60_000, numRanks: 5, ranksPerNode: 2 },
  ])(
    'equals the reference for $numTokens tokens, top-$topk of $numExperts experts on $numRanks ranks',
    async (shape) => {
      const { numTokens, topk, ...options } = shape
      const topkIdx = scatteredIds(numTokens, topk, options.numExperts)
      for (const dtype of ['i32', 'i64'] as const) {
        const layout = getDispatchLayout(Tensor.from(topkIdx.flat(), [numTokens, topk], dtype), options)
        expect(await readLayout(layout)).toEqual(reference.getDispatchLayout(topkIdx, options))
      }
    },
  )

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

  test('names the first of many ids out of range, wherever they are, and writes nothing', async () => {
    const [numTokens, topk, numExperts, numRanks] = [3000, 7, 64, 8]
    const ids = scatteredIds(numTokens, topk, numExperts).flat()
    const valid = Tensor.from(ids, [numTokens, topk], 'i64')
    for (const position of [20_999, 17_003, 8192, 5001, 1]) {
      ids[position] = position % 2 === 0 ? numExperts : -(2 ** 40)
      const preset = (shape: number[], dtype: 'i32' | 'bool'): Tensor =>
        Tensor.from(Array<number>(shape.reduce((product, size) => product * size)).fill(1), shape, dtype)
      const outputs = [preset([numRanks], 'i32'), preset([numExperts], 'i32'), preset([numTokens, numRanks], 'bool')]
      const [perRank, perExpert, inRank] = outputs.map((output) => output.handle)
      const invalid = Tensor.from(ids, [numTokens, topk], 'i64')
      const stream = device.defaultStream.handle
      native().getDispatchLayout(stream, invalid.handle, perRank!, undefined, perExpert!, inRank!, 0)
      await expect(device.defaultStream.synchronize()).rejects.toThrow(
        `received ${ids[position]} for token ${Math.floor(position / topk)}, slot ${position % topk}`,
      )
      for (const output of outputs) expect(new Set(await output.readNumbers())).toEqual(new Set([1]))
    }
    const layout = getDispatchLayout(valid, { numExperts, numRanks })
    expect((await layout.numTokensPerRank.read())[0]).toBeGreaterThan(0)
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
        expect([...(await out.read())]).toEqual(reference.getRankPrefixMatrix(counts).flat())
      }),
    )
  })

  test.each([
    [4096, 8, 10],
    [1000, 3, 1],
    [1000, 2, 77],
    [0, 5, 40],
  ])(
    'of channels equal the reference for %i tokens, %i ranks and %i channels',
    async (numTokens, ranks, numChannels) => {
      const inRank = scatteredIds(numTokens, ranks, 2).map((row) => row.map((value) => value > 0))
      const out = getChannelPrefixMatrix(Tensor.from(inRank.flat().map(Number), [numTokens, ranks], 'bool'), {
        numChannels,
      })
      expect([...(await out.read())]).toEqual(reference.getChannelPrefixMatrix(inRank, ranks, numChannels).flat())
    },
  )

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
        expect([...(await out.read())]).toEqual(reference.getChannelPrefixMatrix(inRank, ranks, numChannels).flat())
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
      expect(sizes).toEqual(sizes.map((_, rank) => placement.countOf(rank)))
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
