import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { computeAlignedM, countExpertNumTokens, reference } from '../src/index.js'
import { device, failure, onHost, optionsOf, randomNumbers, routings } from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })

describe('computeAlignedM', () => {
  test.each([
    [222, 6, 16, 3456],
    [8, 2, 16, 2048],
    [1, 6, 16, 2048],
    [4096, 8, 32, 36864],
  ])('bounds %i tokens, top-%i, %i experts by %i rows', (numTokens, topk, numLocalExperts, rows) => {
    expect(computeAlignedM({ numTokens, topk, numLocalExperts })).toBe(rows)
  })

  test('is exact with host counts', () => {
    const options = { numTokens: 9, topk: 2, numLocalExperts: 3 }
    expect(computeAlignedM({ ...options, expertNumTokens: Int32Array.of(0, 0, 0) })).toBe(0)
    expect(computeAlignedM({ ...options, expertNumTokens: Int32Array.of(1, 0, 129) })).toBe(384)
    expect(computeAlignedM({ ...options, alignment: 16, expertNumTokens: Int32Array.of(1, 16, 17) })).toBe(64)
    expect(computeAlignedM({ ...options, alignment: 1, expertNumTokens: Int32Array.of(1, 0, 17) })).toBe(18)
  })

  test('equals the reference, is aligned, and never less than the exact number', () => {
    fc.assert(
      fc.property(routings, fc.constantFrom(1, 7, 16, 128, 224), ({ topkIdx, topk, ...routing }, alignment) => {
        const { numLocalExperts } = routing
        const options = { numTokens: topkIdx.length, topk, numLocalExperts, alignment }
        const expertNumTokens = reference.countExpertNumTokens(
          topkIdx,
          optionsOf({ topkIdx, topk, ...routing }, 'i32').reference,
        )
        const exact = computeAlignedM({ ...options, expertNumTokens })
        const bound = computeAlignedM(options)
        expect(exact).toBe(reference.computeAlignedM({ ...options, expertNumTokens }))
        expect(bound).toBe(reference.computeAlignedM(options))
        expect([exact % alignment, bound % alignment]).toEqual([0, 0])
        expect(bound).toBeGreaterThanOrEqual(exact)
      }),
    )
  })

  test.each([
    ['tokens', { numTokens: -1 }],
    ['topk', { topk: 0.5 }],
    ['experts', { numLocalExperts: 0 }],
    ['alignment', { alignment: 0 }],
    ['number of counts', { expertNumTokens: Int32Array.of(1) }],
    ['count', { expertNumTokens: Int32Array.of(1, -1) }],
    ['kind of counts', { expertNumTokens: [1, 2] as unknown as Int32Array }],
  ])('refuses a bad %s', (_, options) => {
    expect(() => computeAlignedM({ numTokens: 1, topk: 1, numLocalExperts: 2, ...options })).toThrow(refused)
  })
})

describe('countExpertNumTokens', () => {
  test('equals the reference', async () => {
    await fc.assert(
      fc.asyncProperty(routings, fc.constantFrom('i32' as const, 'i64' as const), async (routing, dtype) => {
        const { ours, reference: plain } = optionsOf(routing, dtype)
        const counts = await onHost(countExpertNumTokens(ours.topkIdx, ours))
        expect(counts.data).toEqual(reference.countExpertNumTokens(plain.topkIdx, plain))
      }),
    )
  })

  const tokens = [1, 4, 8, 11, 19, 128, 127, 405, 1024, 3333, 6666, 7317]
  const cases = tokens.flatMap((numTokens) =>
    [2, 6, 8].flatMap((topk) => [1, 2, 4].map((ranks) => [numTokens, topk, ranks] as const)),
  )
  test.each(cases)(
    'counts %i tokens, top-%i of 32 experts on %i ranks, with and without a map',
    async (numTokens, topk, ranks) => {
      const ids = Int32Array.from(
        randomNumbers(numTokens * topk, numTokens),
        (value) => Math.floor((value + 1) * 16.5) - 1,
      )
      const numLocalExperts = 32 / ranks
      const topkIdx = Tensor.copyOf(ids, [numTokens, topk], 'i32')
      for (let rank = 0; rank < ranks; rank++) {
        const local = Int32Array.from({ length: 32 }, (_, id) =>
          Math.floor(id / numLocalExperts) === rank ? id % numLocalExperts : -1,
        )
        const counts = await onHost(
          countExpertNumTokens(topkIdx, { numLocalExperts, expertMap: Tensor.copyOf(local, [32], 'i32') }),
        )
        const expected = new Int32Array(numLocalExperts)
        for (const id of ids) if (id >= 0 && local[id]! >= 0) expected[local[id]!]!++
        expect(counts.data).toEqual(expected)
      }
    },
  )

  test('counts 2^24 experts, which a cuda device cannot tell apart', async () => {
    const numLocalExperts = 2 ** 24
    const counts = countExpertNumTokens(Tensor.from([0, numLocalExperts - 1], [2, 1], 'i32'), { numLocalExperts })
    if (device.kind === 'cuda') {
      expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_UNSUPPORTED' })
    } else {
      const { data } = await onHost(counts)
      expect([data[0], data[1], data[numLocalExperts - 1]]).toEqual([1, 0, 1])
    }
  })

  test('counts any number of slots', async () => {
    for (let slots = 1; slots < 8192; slots += 11) {
      const ids = BigInt64Array.from({ length: slots }, (_, slot) => BigInt((slot * 7) % 16))
      const counts = await onHost(countExpertNumTokens(Tensor.copyOf(ids, [slots, 1], 'i64'), { numLocalExperts: 16 }))
      const expected = Int32Array.from({ length: 16 }, (_, expert) => {
        const before = (expert * 7) % 16 // 7 is its own inverse modulo 16
        return Math.ceil((slots - before) / 16)
      })
      expect(counts.data).toEqual(expected)
    }
  })

  test.each([
    [0, 4],
    [4, 0],
  ])('gives zeros for ids of shape [%i, %i]', async (numTokens, topk) => {
    const counts = await onHost(countExpertNumTokens(Tensor.zeros([numTokens, topk], 'i64'), { numLocalExperts: 3 }))
    expect(counts.data).toEqual(new Int32Array(3))
  })

  test.each([
    ['too large', 4, 'received 4 for token 1, slot 0'],
    ['too small', -2, 'received -2 for token 1, slot 0'],
  ])('refuses an id that is %s', async (_, id, message) => {
    countExpertNumTokens(Tensor.from([0, 1, id, 9], [2, 2], 'i64'), { numLocalExperts: 4 })
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(message) })
  })

  test('refuses a map that leads out of the local experts', async () => {
    const expertMap = Tensor.from([0, 2], [2], 'i32')
    countExpertNumTokens(Tensor.from([0, 1], [2, 1], 'i32'), { numLocalExperts: 2, expertMap })
    const message = expect.stringContaining('expertMap: expected -1 or a local expert below 2, received 2 for expert 1')
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message })
  })

  test.each([
    ['dtype of ids', () => Tensor.zeros([2, 2], 'f32'), {}],
    ['shape of ids', () => Tensor.zeros([4], 'i32'), {}],
    ['number of experts', () => Tensor.zeros([2, 2], 'i32'), { numLocalExperts: 0 }],
    ['map', () => Tensor.zeros([2, 2], 'i32'), { expertMap: Tensor.zeros([2], 'i64') }],
  ])('refuses a bad %s before anything is enqueued', (_, topkIdx, options) => {
    expect(() => countExpertNumTokens(topkIdx(), { numLocalExperts: 2, ...options })).toThrow(refused)
  })
})
