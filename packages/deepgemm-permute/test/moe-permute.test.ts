import { encode, f32ToBits, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { moePermute, type MoePermuteOptions, moeUnpermute, type MoeUnpermuteOptions, reference } from '../src/index.js'
import {
  failure,
  firstDifference,
  intoZeros,
  matrix,
  onHost,
  optionsOf,
  randomBits,
  randomNumbers,
  routings,
  rowBytes,
} from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })

describe('moePermute', () => {
  test('equals the reference, and moeUnpermute too, bit for bit', async () => {
    const shapes = fc.record({
      dtype: fc.constantFrom('bf16' as const, 'f16' as const, 'f32' as const),
      hidden: fc.constantFrom(1, 7, 64),
      alignment: fc.constantFrom(undefined, 1, 5, 128),
      fillInvalidExpert: fc.constantFrom(undefined, -1, 0, 77),
      groups: fc.constantFrom(undefined, 3),
    })
    await fc.assert(
      fc.asyncProperty(routings, shapes, async (routing, { dtype, hidden, alignment, fillInvalidExpert, groups }) => {
        const { ours, reference: plain } = optionsOf(routing, 'i32')
        const [numTokens, topk] = [routing.topkIdx.length, routing.topk]
        const x = randomBits([numTokens, hidden], dtype)
        const scales = groups === undefined ? undefined : randomBits([numTokens, groups], 'f32', 2)
        const settings = {
          ...(alignment !== undefined && { alignment }),
          ...(fillInvalidExpert !== undefined && { fillInvalidExpert }),
        }
        const weights = randomNumbers(numTokens * topk, 3)
        const permuted = intoZeros((out) => moePermute(x, { ...ours, ...settings, ...(scales && { scales }), ...out }))
        const topkWeights = Tensor.copyOf(weights, [numTokens, topk], 'f32')
        const back = await onHost(moeUnpermute(permuted.rows, { ...permuted, topkWeights }))
        const actual = await onHost(permuted)
        const expected = reference.moePermute(rowBytes(x), {
          ...{ ...plain, ...settings, topk },
          ...(scales && { scales: rowBytes(scales) }),
        })
        const open = (tensor: Tensor): Uint8Array => new Uint8Array(tensor.byteLength / Math.max(1, tensor.shape[0]!))
        const zero = open(actual.rows)
        expect(
          firstDifference(
            rowBytes(actual.rows),
            expected.rows.map((row) => row ?? zero),
          ),
        ).toBeUndefined()
        if (actual.scales) {
          const zeroScales = open(actual.scales)
          expect(
            firstDifference(
              rowBytes(actual.scales),
              expected.scales.map((row) => row ?? zeroScales),
            ),
          ).toBeUndefined()
        }
        expect([...actual.expertFirstTokenOffset.toNumbers()]).toEqual(expected.expertFirstTokenOffset)
        expect([...actual.invPermutedIdx.data]).toEqual(expected.invPermutedIdx)
        expect(firstDifference([Array.from(actual.mIndices.data, Number)], [expected.mIndices])).toBeUndefined()
        const sums = reference.moeUnpermute(matrix(actual.rows.toNumbers(), hidden), {
          topkWeights: matrix(weights, topk),
          invPermutedIdx: expected.invPermutedIdx,
          numValidRows: expected.expertFirstTokenOffset.at(-1)!,
          hidden,
        })
        const { buffer, byteOffset, length } = back.data
        const stored = dtype === 'f32' ? new Uint32Array(buffer, byteOffset, length) : back.data
        const bits = dtype === 'f32' ? sums.flat().map(f32ToBits) : [...encode(dtype, sums.flat())].map(Number)
        expect([...stored].map(Number)).toEqual(bits)
      }),
    )
  })

  const cases = [1, 33, 512].flatMap((tokens) =>
    [256, 896].flatMap((hidden) =>
      [16, 64, 256].flatMap((experts) =>
        [2, 6, 8].flatMap((topk) => [1, 4, 16].map((ranks) => [tokens, hidden, experts, topk, ranks] as const)),
      ),
    ),
  )
  test.each(cases)(
    '%i tokens, hidden %i, %i experts, top-%i, one of %i ranks: offsets, index, rows and sums',
    async (tokens, hidden, experts, topk, ranks) => {
      const ids = Int32Array.from(randomNumbers(tokens * topk, topk), (v) => Math.floor(((v + 1) / 2) * experts))
      const numLocalExperts = experts / ranks
      const rank = ranks - 1
      const keyOf = (id: number): number =>
        Math.floor(id / numLocalExperts) === rank ? id % numLocalExperts : experts + id
      const expertMap = Int32Array.from({ length: experts }, (_, id) => (keyOf(id) < experts ? keyOf(id) : -1))
      const x = Tensor.from(randomNumbers(tokens * hidden, 6), [tokens, hidden], 'bf16')
      const options = {
        ...{ topkIdx: Tensor.copyOf(ids, [tokens, topk], 'i32'), numLocalExperts },
        expertMap: Tensor.copyOf(expertMap, [experts], 'i32'),
      }
      const permuted = intoZeros((out) => moePermute(x, { ...options, ...out }))
      const topkWeights = Tensor.from(Array<number>(tokens * topk).fill(1), [tokens, topk], 'f32')
      const back = await onHost(moeUnpermute(permuted.rows, { ...permuted, topkWeights, outDtype: 'f32' }))
      const out = await onHost(permuted)

      // A stable sort of all slots, worked out apart from the package.
      const sorted = Array.from(ids, (_, slot) => slot).sort((a, b) => keyOf(ids[a]!) - keyOf(ids[b]!) || a - b)
      const index = new Int32Array(ids.length)
      sorted.forEach((slot, row) => (index[slot] = row))
      const locals = Array.from(ids, (id) => expertMap[id]!).filter((expert) => expert >= 0)
      const offsets = Array.from({ length: numLocalExperts + 1 }, (_, e) => locals.filter((l) => l < e).length)
      expect(out.invPermutedIdx.data).toEqual(index)
      expect([...out.expertFirstTokenOffset.toNumbers()]).toEqual(offsets)
      expect(out.rows.shape).toEqual([tokens * topk, hidden])
      const host = await onHost(x)
      const [source, rows] = [host, out.rows].map(({ data }) => Buffer.from(data.buffer, data.byteOffset)) as [
        Buffer,
        Buffer,
      ]
      const size = hidden * 2
      for (const [row, slot] of sorted.slice(0, locals.length).entries()) {
        const token = Math.floor(slot / topk)
        expect(rows.compare(source, token * size, (token + 1) * size, row * size, (row + 1) * size)).toBe(0)
      }
      // With weights of one, a row comes back as often as it was local, each sum exact enough for f32.
      const values = host.toNumbers()
      const sums = back.toNumbers()
      let furthest = 0
      for (let token = 0; token < tokens; token++) {
        const times = ids.subarray(token * topk, (token + 1) * topk).filter((id) => expertMap[id]! >= 0).length
        for (let i = token * hidden; i < (token + 1) * hidden; i++) {
          furthest = Math.max(furthest, Math.abs(Number(sums[i]) - times * Number(values[i])))
        }
      }
      expect(furthest).toBeLessThan(1e-5)
    },
  )

  test('puts foreign slots last by global id, then slots without an expert', async () => {
    const options: MoePermuteOptions = {
      topkIdx: Tensor.from([3, 1, -1, 0, 2, 1, 0, 3], [4, 2], 'i64'),
      numLocalExperts: 2,
      expertMap: Tensor.from([-1, 0, 1, -1], [4], 'i32'),
    }
    const x = Tensor.from([1, 2, 3, 4], [4, 1], 'u8')
    const plain = await onHost(moePermute(x, options))
    const aligned = await onHost(moePermute(x, { ...options, alignment: 4, fillInvalidExpert: -5 }))
    expect([...plain.expertFirstTokenOffset.toNumbers()]).toEqual([0, 2, 3])
    expect([...plain.invPermutedIdx.data]).toEqual([5, 0, 7, 3, 2, 1, 4, 6])
    expect([...plain.mIndices.data]).toEqual([0, 0, 1, -1, -1, -1, -1, -1])
    expect([...plain.rows.data]).toEqual([1, 3, 3, 0, 0, 0, 0, 0])
    expect([...aligned.expertFirstTokenOffset.toNumbers()]).toEqual([0, 4, 8])
    expect([...aligned.invPermutedIdx.data]).toEqual([10, 0, 12, 8, 4, 1, 9, 11])
    expect([...aligned.mIndices.data]).toEqual([0, 0, 0, 0, 1, 1, 1, 1, ...Array<number>(8).fill(-5)])
  })

  test('takes no tokens', async () => {
    const out = moePermute(Tensor.zeros([0, 4], 'bf16'), { topkIdx: Tensor.zeros([0, 2], 'i32'), numLocalExperts: 3 })
    const back = moeUnpermute(out.rows, { ...out, topkWeights: Tensor.zeros([0, 2], 'f32') })
    expect([out.rows.shape, out.mIndices.shape, (await onHost(back)).shape]).toEqual([[0, 4], [0], [0, 4]])
    expect([...(await out.expertFirstTokenOffset.readNumbers())]).toEqual([0, 0, 0, 0])
  })

  const ids = Tensor.zeros([2, 2], 'i32')
  test.each<[string, Partial<MoePermuteOptions>]>([
    ['alignment 0', { alignment: 0 }],
    ['a fill that is no i32', { fillInvalidExpert: 2 ** 31 }],
    ['rows of another shape', { out: { rows: Tensor.zeros([5, 4], 'bf16') } }],
    ['an index over the ids', { topkIdx: ids, out: { invPermutedIdx: ids.reshape([4]) } }],
    ['an index of another shape', { out: { invPermutedIdx: Tensor.zeros([2, 2], 'i32') } }],
  ])('refuses %s', (_, options) => {
    const base = { topkIdx: Tensor.zeros([2, 2], 'i32'), numLocalExperts: 2 }
    expect(() => moePermute(Tensor.zeros([2, 4], 'bf16'), { ...base, ...options })).toThrow(refused)
  })

  test('refuses an id out of range at the next await', async () => {
    moePermute(Tensor.zeros([1, 4], 'bf16'), { topkIdx: Tensor.from([0, 9], [1, 2], 'i32'), numLocalExperts: 2 })
    expect(await failure()).toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      message: expect.stringContaining('received 9'),
    })
  })
})

describe('moeUnpermute', () => {
  const rows = Tensor.from([1, 2, 3, 4], [2, 2], 'f32')
  const options = {
    topkWeights: Tensor.from([1, 2, 3, 4], [2, 2], 'f32'),
    invPermutedIdx: Tensor.from([1, 2, 3, 0], [4], 'i32'),
    expertFirstTokenOffset: Tensor.from([0, 1, 2], [3], 'i64'),
  }

  test('adds nothing for rows behind the last offset', async () => {
    const out = await onHost(moeUnpermute(rows, options))
    expect([...out.toNumbers()]).toEqual([3, 4, 4, 8])
  })

  test.each([
    [
      'without offsets',
      { invPermutedIdx: options.invPermutedIdx, topkWeights: options.topkWeights },
      'received 2 for token 0, slot 1',
    ],
    [
      'below 0',
      { ...options, invPermutedIdx: Tensor.from([0, 0, 0, -3], [4], 'i32') },
      'received -3 for token 1, slot 1',
    ],
  ])('refuses rows that are not there %s, at the next await', async (_, bad, message) => {
    moeUnpermute(rows, bad)
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(message) })
  })

  test.each<[string, Partial<MoeUnpermuteOptions> & { rows?: Tensor }]>([
    ['an index of another length', { invPermutedIdx: Tensor.zeros([3], 'i32') }],
    ['offsets of another dtype', { expertFirstTokenOffset: Tensor.zeros([3], 'i32') }],
    ['no offsets', { expertFirstTokenOffset: Tensor.zeros([0], 'i64') }],
    ['rows of fp8', { rows: Tensor.zeros([2, 2], 'fp8e4m3') }],
  ])('refuses %s', (_, { rows: otherRows, ...bad }) => {
    expect(() => moeUnpermute(otherRows ?? rows, { ...options, ...bad })).toThrow(refused)
  })
})
