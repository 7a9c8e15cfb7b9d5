import { type DType, encode, f32ToBits, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { permute, reference, unpermuteAndReduce, type UnpermuteAndReduceOptions } from '../src/index.js'
import {
  copyToHost,
  device,
  failure,
  hostOf,
  intoZeros,
  matrix,
  onHost,
  optionsOf,
  randomBits,
  randomNumbers,
  routings,
} from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
type FloatDType = 'bf16' | 'f16' | 'f32'
const floats = fc.constantFrom<FloatDType[]>('bf16', 'f16', 'f32')

/** Bits of every element, whatever the dtype. */
function bitsOf(tensor: Tensor): number[] {
  const { buffer, byteOffset, length } = tensor.data
  return tensor.dtype === 'f32' ? [...new Uint32Array(buffer, byteOffset, length)] : Array.from(tensor.data, Number)
}

/** Quicker to compare than elements. */
function bytesOf({ data: { buffer, byteOffset, byteLength } }: Tensor): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength)
}

/** Bits of numbers stored as `dtype`. */
function storedBits(values: readonly number[], dtype: DType): number[] {
  return dtype === 'f32' ? values.map(f32ToBits) : Array.from(encode(dtype, values), Number)
}

describe('unpermuteAndReduce', () => {
  test('equals the reference, bit for bit, on every bit pattern', async () => {
    const shapes = fc.record({
      rows: floats,
      out: floats,
      idDtype: fc.constantFrom('i32' as const, 'i64' as const),
      hidden: fc.constantFrom(1, 7, 8, 64, 301),
      weights: fc.constantFrom('numbers', 'bits'),
    })
    await fc.assert(
      fc.asyncProperty(
        routings,
        shapes,
        async (routing, { rows: rowsDtype, out: outDtype, idDtype, hidden, weights }) => {
          const { ours, reference: plain } = optionsOf(routing, idDtype)
          const { topk } = routing
          const numTokens = routing.topkIdx.length
          const layout = reference.permute(routing.topkIdx, { ...plain, alignment: 3 })
          const expertRows = randomBits([layout.rows.length, hidden], rowsDtype)
          const slots = [numTokens, topk]
          const topkWeights =
            weights === 'bits'
              ? randomBits(slots, 'f32', 7)
              : Tensor.copyOf(randomNumbers(numTokens * topk), slots, 'f32')
          const out = await onHost(
            unpermuteAndReduce(expertRows, {
              ...ours,
              topkWeights,
              inversePermutation: Tensor.from(layout.inversePermutation.flat(), slots, 'i32'),
              outDtype,
            }),
          )
          const expected = reference.unpermuteAndReduce(matrix(hostOf(expertRows).toNumbers(), hidden), {
            ...plain,
            topkWeights: matrix(await topkWeights.readNumbers(), topk),
            inversePermutation: layout.inversePermutation,
            hidden,
          })
          expect(out.shape).toEqual([numTokens, hidden])
          expect(bitsOf(out)).toEqual(storedBits(expected.flat(), outDtype))
        },
      ),
    )
  })

  test.each<FloatDType>(['bf16', 'f16', 'f32'])(
    'loads and stores every f16 exactly as core does, to %s',
    async (outDtype) => {
      const all = Tensor.copyOf(
        Uint16Array.from({ length: 65536 }, (_, bits) => bits),
        [1, 65536],
        'f16',
      )
      const one = Tensor.from([1], [1, 1], 'f32')
      const index = Tensor.zeros([1, 1], 'i32')
      const out = await onHost(
        unpermuteAndReduce(all, { topkIdx: index, topkWeights: one, inversePermutation: index, outDtype }),
      )
      // The sum starts at +0, so that -0 comes out as +0.
      expect(bitsOf(out)).toEqual(
        storedBits(
          Array.from(await all.readNumbers(), (value) => value + 0),
          outDtype,
        ),
      )
    },
  )

  test('rounds f32 to f16 as core does around every f16', async () => {
    const halves = Tensor.wrap(
      Uint16Array.from({ length: 65536 }, (_, bits) => bits),
      [65536],
      'f16',
    ).toNumbers()
    const values = Float32Array.from(halves).filter((value) => Number.isFinite(value))
    const words = new Uint32Array(values.buffer)
    // The value, its middle to the next one (a tie in the normal range), and one f32 step on either side of both.
    const nearby = [-1, 0, 1, 4095, 4096, 4097].flatMap((step) => Array.from(words, (word) => (word + step) >>> 0))
    const rows = Tensor.copyOf(new Float32Array(Uint32Array.from(nearby).buffer), [1, nearby.length], 'f32')
    const index = Tensor.zeros([1, 1], 'i32')
    const one = Tensor.from([1], [1, 1], 'f32')
    const out = await onHost(
      unpermuteAndReduce(rows, {
        topkIdx: index,
        topkWeights: one,
        inversePermutation: index,
        outDtype: 'f16',
      }),
    )
    expect(bitsOf(out)).toEqual(
      storedBits(
        Array.from(await rows.readNumbers(), (value) => value + 0),
        'f16',
      ),
    )
  })

  test.each([
    [4, 8, 1, 128, 512],
    [4, 16, 2, 256, 512],
    [8, 32, 1, 512, 1024],
    [4, 64, 1, 128, 512],
    [8, 32, 2, 256, 1024],
    [4, 128, 1, 1024, 512],
    [16, 64, 1, 256, 2048],
    [4, 16, 4, 128, 512],
    [8, 9, 8, 2880, 100],
    [8, 9, 11, 4099, 100],
  ])(
    'sums %i experts, %i tokens, top-%i, hidden %i, %i rows, with and without a map',
    async (experts, tokens, topk, hidden, sourceRows) => {
      const ids = matrix(
        Array.from(randomNumbers(tokens * topk, 3), (value) => Math.floor(((value + 1) / 2) * experts)),
        topk,
      )
      const places = ids.map((row, token) => row.map((_, slot) => (token * topk + slot) % sourceRows))
      const weights = matrix(randomNumbers(tokens * topk, 4), topk)
      const rows = Tensor.from(randomNumbers(sourceRows * hidden, 5), [sourceRows, hidden], 'bf16')
      for (const expertMap of [
        undefined,
        Array.from({ length: experts }, (_, id) => (id % 2 === 1 ? (id - 1) / 2 : -1)),
      ]) {
        const out = await onHost(
          unpermuteAndReduce(rows, {
            topkIdx: Tensor.from(ids.flat(), [tokens, topk], 'i64'),
            topkWeights: Tensor.from(weights.flat(), [tokens, topk], 'f32'),
            inversePermutation: Tensor.from(places.flat(), [tokens, topk], 'i32'),
            ...(expertMap && { expertMap: Tensor.from(expertMap, [experts], 'i32') }),
          }),
        )
        const expected = reference.unpermuteAndReduce(matrix(await rows.readNumbers(), hidden), {
          topkIdx: ids,
          topkWeights: weights,
          inversePermutation: places,
          hidden,
          ...(expertMap && { expertMap }),
        })
        expect(bitsOf(out)).toEqual(storedBits(expected.flat(), 'bf16'))
      }
    },
  )

  test.each<[FloatDType, FloatDType, number, number, number]>([
    ['bf16', 'bf16', 8, 2880, 700],
    ['bf16', 'bf16', 3, 4104, 800],
    ['bf16', 'f32', 8, 64, 6000],
    ['f32', 'f16', 32, 1028, 600],
    ['f16', 'f32', 1, 8, 9000],
  ])(
    'sums %s to %s, top-%i, hidden %i, %i tokens, some without slots',
    async (rows, outDtype, topk, hidden, tokens) => {
      const sourceRows = 90
      const slots = [tokens, topk]
      const expertRows = randomBits([sourceRows, hidden], rows)
      const ids = Array.from({ length: tokens * topk }, (_, slot) => ((slot * 7919) % 11 < 7 ? slot % 3 : -1))
      ids.fill(-1, 5 * topk, 7 * topk)
      const places = ids.map((_, slot) => (slot * 37) % sourceRows)
      const topkWeights = Tensor.copyOf(randomNumbers(tokens * topk, 6), slots, 'f32')
      const options = {
        topkIdx: Tensor.from(ids, slots, 'i32'),
        topkWeights,
        inversePermutation: Tensor.from(places, slots, 'i32'),
        outDtype,
      }
      const out = await onHost(unpermuteAndReduce(expertRows, options))
      const numbers = matrix(hostOf(expertRows).toNumbers(), hidden)
      const weights = matrix(await topkWeights.readNumbers(), topk)
      // Some tokens from the beginning, the middle and the end: the reference is slow.
      const sample = [0, 1, 5, 6, 7, tokens >> 1, tokens - 3, tokens - 1]
      const expected = reference.unpermuteAndReduce(numbers, {
        topkIdx: sample.map((token) => ids.slice(token * topk, (token + 1) * topk)),
        topkWeights: sample.map((token) => weights[token]!),
        inversePermutation: sample.map((token) => places.slice(token * topk, (token + 1) * topk)),
        hidden,
      })
      for (const [index, token] of sample.entries())
        expect(bitsOf(out.slice(token, token + 1))).toEqual(storedBits(expected[index]!, outDtype))
      // The others from sums of a few tokens at a time, which take another way.
      const part = Math.floor(2000 / topk)
      for (let token = 0; token < tokens; token += part) {
        const end = Math.min(tokens, token + part)
        const some = await onHost(
          unpermuteAndReduce(expertRows, {
            topkIdx: options.topkIdx.slice(token, end),
            topkWeights: options.topkWeights.slice(token, end),
            inversePermutation: options.inversePermutation.slice(token, end),
            outDtype,
          }),
        )
        expect(bytesOf(out.slice(token, end)).equals(bytesOf(some))).toBe(true)
      }
    },
  )

  test('undoes permute: top-1 with weight 1 gives the rows back', async () => {
    const ids = Array.from({ length: 33 }, (_, token) => (token * 5) % 7)
    const x = Tensor.from(randomNumbers(33 * 96), [33, 96], 'bf16')
    const topkIdx = Tensor.from(ids, [33, 1], 'i32')
    const permuted = intoZeros((out) => permute(x, { topkIdx, numLocalExperts: 7, ...out }))
    const topkWeights = Tensor.from(Array<number>(33).fill(1), [33, 1], 'f32')
    const out = await onHost(unpermuteAndReduce(permuted.rows, { ...permuted, topkIdx, topkWeights }))
    expect(out.data).toEqual(await x.read())
  })

  test('gives the same bits with 1, 2 and 5 threads, and reads rows that lie apart', async () => {
    const wide = randomBits([200, 400], 'bf16')
    const rows = new Tensor({ memory: wide.memory, dtype: 'bf16', shape: [200, 320], strides: [400, 1] })
    const slots = [90, 5]
    const options = {
      topkIdx: Tensor.zeros(slots, 'i64'),
      topkWeights: Tensor.copyOf(randomNumbers(450), slots, 'f32'),
      inversePermutation: Tensor.from(
        Array.from({ length: 450 }, (_, slot) => (slot * 37) % 200),
        slots,
        'i32',
      ),
    }
    const results: Tensor[] = []
    for (const threads of [1, 2, 5]) {
      const stream = device.createStream({ threads })
      results.push(await copyToHost(unpermuteAndReduce(rows, { ...options, stream }), stream))
      await stream.close()
    }
    expect(results[1]!.data).toEqual(results[0]!.data)
    expect(results[2]!.data).toEqual(results[0]!.data)
    const expected = reference.unpermuteAndReduce(
      matrix(hostOf(wide).toNumbers(), 400).map((row) => row.slice(0, 320)),
      {
        topkIdx: matrix(await options.topkIdx.readNumbers(), 5),
        topkWeights: matrix(await options.topkWeights.readNumbers(), 5),
        inversePermutation: matrix(await options.inversePermutation.readNumbers(), 5),
        hidden: 320,
      },
    )
    expect(bitsOf(results[0]!)).toEqual(storedBits(expected.flat(), 'bf16'))
  })

  test('writes zeros for tokens without local slots, and nothing reads what belongs to skipped slots', async () => {
    const out = Tensor.from(Array<number>(8).fill(9), [2, 4], 'f32')
    const result = unpermuteAndReduce(Tensor.from([1, 2, 3, 4], [1, 4], 'f32'), {
      topkIdx: Tensor.from([-1, 1, 0, -1], [2, 2], 'i32'),
      topkWeights: Tensor.from([NaN, NaN, 2, NaN], [2, 2], 'f32'),
      inversePermutation: Tensor.from([-9, 99, 0, 99], [2, 2], 'i32'),
      expertMap: Tensor.from([0, -1], [2], 'i32'),
      out,
    })
    expect(result).toBe(out)
    expect(bitsOf(await copyToHost(out))).toEqual([0, 0, 0, 0, 2, 4, 6, 8].map(f32ToBits))
  })

  test('takes no tokens and no rows', async () => {
    const slots = (numTokens: number): UnpermuteAndReduceOptions => ({
      topkIdx: Tensor.from(Array<number>(numTokens).fill(-1), [numTokens, 1], 'i32'),
      topkWeights: Tensor.zeros([numTokens, 1], 'f32'),
      inversePermutation: Tensor.zeros([numTokens, 1], 'i32'),
    })
    const none = await onHost(unpermuteAndReduce(Tensor.zeros([0, 16], 'bf16'), slots(0)))
    const zeros = await onHost(unpermuteAndReduce(Tensor.zeros([0, 2], 'bf16'), slots(3)))
    expect(none.shape).toEqual([0, 16])
    expect(bitsOf(zeros)).toEqual([0, 0, 0, 0, 0, 0])
  })
})

describe('unpermuteAndReduce refuses', () => {
  const rows = Tensor.zeros([4, 8], 'bf16')
  const base: UnpermuteAndReduceOptions = {
    topkIdx: Tensor.zeros([2, 2], 'i64'),
    topkWeights: Tensor.zeros([2, 2], 'f32'),
    inversePermutation: Tensor.zeros([2, 2], 'i32'),
  }

  test.each<[string, () => Tensor, Partial<UnpermuteAndReduceOptions>]>([
    ['rows of fp8', () => Tensor.zeros([4, 8], 'fp8e4m3'), {}],
    ['rows of one dimension', () => Tensor.zeros([4], 'bf16'), {}],
    ['weights of another shape', () => rows, { topkWeights: Tensor.zeros([2, 1], 'f32') }],
    ['weights of another dtype', () => rows, { topkWeights: Tensor.zeros([2, 2], 'bf16') }],
    ['an inverse of another dtype', () => rows, { inversePermutation: Tensor.zeros([2, 2], 'i64') }],
    ['a map of another dtype', () => rows, { expertMap: Tensor.zeros([2], 'f32') }],
    ['an output dtype that is no float', () => rows, { outDtype: 'u8' as 'f32' }],
    ['an out of another shape', () => rows, { out: Tensor.zeros([2, 7], 'bf16') }],
    ['an out over the last rows', () => rows, { out: rows.slice(2, 4) }],
    ['an out of another dtype than asked for', () => rows, { out: Tensor.zeros([2, 8], 'bf16'), outDtype: 'f32' }],
  ])('%s', (_, expertRows, options) => {
    expect(() => unpermuteAndReduce(expertRows(), { ...base, ...options })).toThrow(refused)
  })

  test.each([
    [
      'a row that is not there',
      { inversePermutation: Tensor.from([0, 1, 4, 9], [2, 2], 'i32') },
      'below 4, received 4 for token 1, slot 0',
    ],
    [
      'no row for a local slot',
      { inversePermutation: Tensor.from([0, -1, 2, 3], [2, 2], 'i32') },
      'received -1 for token 0, slot 1',
    ],
    [
      'an id that is too small',
      { topkIdx: Tensor.from([0, 1, 2, -2], [2, 2], 'i64') },
      'received -2 for token 1, slot 1',
    ],
    ['an id beyond the map', { expertMap: Tensor.zeros([0], 'i32') }, 'an expert below 0, received 0'],
    ['a map entry below -1', { expertMap: Tensor.from([-2], [1], 'i32') }, 'received -2 for expert 0'],
  ])('%s, at the next await, and writes nothing', async (_, options, message) => {
    const out = Tensor.from(Array<number>(16).fill(1), [2, 8], 'bf16')
    unpermuteAndReduce(rows, { ...base, ...options, out })
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(message) })
    expect([...(await out.readNumbers())]).toEqual(Array<number>(16).fill(1))
  })

  test('one bad slot among thousands, at the next await, and writes nothing', async () => {
    const slots = [1000, 8]
    const places = new Int32Array(8000)
    places[4321] = 4
    const out = Tensor.from(Array<number>(8000).fill(1), [1000, 8], 'bf16')
    unpermuteAndReduce(rows, {
      topkIdx: Tensor.zeros(slots, 'i32'),
      topkWeights: Tensor.zeros(slots, 'f32'),
      inversePermutation: Tensor.from(places, slots, 'i32'),
      out,
    })
    expect(await failure()).toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      message: expect.stringContaining('below 4, received 4 for token 540, slot 1'),
    })
    expect([...(await out.readNumbers())]).toEqual(Array<number>(8000).fill(1))
  })
})
