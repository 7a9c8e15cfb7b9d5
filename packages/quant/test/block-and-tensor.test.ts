import { copyTensor, Graph, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  dequantizeBlock,
  dequantizePerTensor,
  dequantizePerTokenGroup,
  quantizeBlock,
  quantizePerTensor,
  quantizePerToken,
  quantizePerTokenGroup,
  reference,
} from '../src/index.js'
import { bytesOf, device, floatDTypes, numbersOf, sameBytes, storedElements, words32 } from './support.js'

const floatOf = (bits: number): number => new Float32Array(Uint32Array.of(bits).buffer)[0]!

describe('quantizeBlock and dequantizeBlock', () => {
  const cases = fc
    .record({
      dtype: fc.constantFrom(...floatDTypes),
      batch: fc.constantFrom(undefined, 0, 1, 3),
      rows: fc.integer({ min: 0, max: 20 }),
      // Whole vectors often: they have kernels of their own.
      columns: fc.oneof(fc.integer({ min: 0, max: 40 }), fc.constantFrom(8, 32, 136)),
      blockShape: fc.tuple(
        fc.integer({ min: 1, max: 24 }),
        fc.oneof(fc.integer({ min: 1, max: 48 }), fc.constantFrom(16, 128)),
      ),
      scaleFormat: fc.constantFrom('f32' as const, 'ue8m0' as const),
    })
    .chain((shape) =>
      storedElements(shape.dtype, (shape.batch ?? 1) * shape.rows * shape.columns).map((stored) => ({
        ...shape,
        stored,
      })),
    )

  test('equal the reference, matrix by matrix', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ dtype, batch, rows, columns, blockShape, scaleFormat, stored }) => {
        const shape = [...(batch === undefined ? [] : [batch]), rows, columns]
        const { values, scales } = quantizeBlock(Tensor.copyOf(stored, shape, dtype), { blockShape, scaleFormat })
        const back = dequantizeBlock(values, scales, { blockShape, dtype })
        const [all, backBytes] = [numbersOf(dtype, stored), await bytesOf(back)]
        const size = rows * columns
        const perMatrix = scales.numel / (batch ?? 1)
        const codes = await bytesOf(values)
        const allScales = (await scales.read()) as Float32Array
        for (let m = 0; m < (batch ?? 1); m++) {
          const matrix = all.subarray(m * size, (m + 1) * size)
          const options = { columns, blockShape, powerOfTwo: scaleFormat === 'ue8m0' }
          const expected = reference.quantizeBlock(matrix, options)
          expect(sameBytes(codes.subarray(m * size, (m + 1) * size), expected.values)).toBe(true)
          const found = allScales.subarray(m * perMatrix, (m + 1) * perMatrix)
          expect(sameBytes(found, expected.scales)).toBe(true)
          const expectedBack = reference.dequantizeBlock(expected.values, expected.scales, {
            columns,
            blockShape,
            dtype,
          })
          const width = stored.BYTES_PER_ELEMENT
          expect(sameBytes(backBytes.subarray(m * size * width, (m + 1) * size * width), expectedBack)).toBe(true)
        }
      }),
      { numRuns: 300 },
    )
  })

  test('blocks of 128 x 128 with cropped edges', async () => {
    const [rows, columns] = [200, 300]
    const numbers = Array.from({ length: rows * columns }, (_, i) => Math.sin(i * 0.01) * (1 + Math.floor(i / columns)))
    const { values, scales } = quantizeBlock(Tensor.from(numbers, [rows, columns], 'f32'))
    const back = dequantizeBlock(values, scales, { dtype: 'f32' })
    expect(scales.shape).toEqual([2, 3])
    const expected = reference.quantizeBlock(numbers.map(Math.fround), { columns, blockShape: [128, 128] })
    expect(sameBytes(await values.read(), expected.values) && sameBytes(await scales.read(), expected.scales)).toBe(
      true,
    )
    const backNumbers = await back.readNumbers()
    numbers.forEach((x, i) => expect(Math.abs(backNumbers[i]! - x)).toBeLessThanOrEqual(Math.abs(x) * 0.0701 + 0.002))
  })

  // A GPU's block of 256 threads takes every 256th vector or element: rows of blocks are divisors of that, or not,
  // or longer; the last blocks are cropped; some have more than threads hold at once.
  const widths = [
    [2400, [33, 2400]],
    [2400, [37, 4096]],
    [2400, [64, 1000]],
    [2400, [10, 2056]],
    [1032, [70, 24]],
    [1032, [300, 8]],
    [1033, [290, 1]],
    [1032, [7, 512]],
    [1034, [40, 1034]],
    [1034, [40, 300]],
    [259, [70, 257]],
  ] as const
  test.each(widths.flatMap((width) => floatDTypes.map((dtype) => [...width, dtype] as const)))(
    'rows of %d in blocks of %j, %s',
    async (columns, blockShape, dtype) => {
      const rows = blockShape[0] + 1
      const length = rows * columns
      const numbers = Array.from({ length: 2 * length }, (_, i) =>
        i % 9973 === 0 ? NaN : Math.sin(i * 0.7) * (1 + (i % 613) + Math.floor(i / columns)),
      )
      const x = Tensor.from(numbers, [2, rows, columns], dtype)
      const { values, scales } = quantizeBlock(x, { blockShape })
      const stored = await x.readNumbers()
      const expected = [stored.slice(0, length), stored.slice(length)].map((matrix) =>
        reference.quantizeBlock(matrix, { columns, blockShape }),
      )
      expect(sameBytes(await bytesOf(values), Buffer.concat(expected.map((matrix) => matrix.values)))).toBe(true)
      expect([...(await scales.readNumbers())]).toEqual(expected.flatMap((matrix) => [...matrix.scales]))
    },
  )

  test('zeros, NaN and infinities', async () => {
    const { values, scales } = quantizeBlock(Tensor.from([0, -0, NaN, 448, Infinity, -1], [3, 2], 'bf16'), {
      blockShape: [1, 2],
    })
    expect([...(await scales.readNumbers())]).toEqual([Math.fround(Math.fround(1e-4) / 448), 1, Infinity])
    expect([...(await bytesOf(values))]).toEqual([0, 0x80, 0x7f, 0x7e, 0x7f, 0x80])
  })
})

describe('quantizePerToken', () => {
  const cases = fc
    .record({
      dtype: fc.constantFrom(...floatDTypes),
      rows: fc.integer({ min: 0, max: 6 }),
      hidden: fc.oneof(fc.integer({ min: 1, max: 200 }), fc.constantFrom(1024, 1032, 9000)),
      bound: fc.constantFrom(undefined, 0.001, 1, 448, 1000),
    })
    .chain((shape) => storedElements(shape.dtype, shape.rows * shape.hidden).map((stored) => ({ ...shape, stored })))

  test('equals the reference, with and without an upper bound', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ dtype, rows, hidden, bound, stored }) => {
        const options = bound === undefined ? {} : { scaleUpperBound: bound }
        const { values, scales } = quantizePerToken(Tensor.copyOf(stored, [rows, hidden], dtype), options)
        const expected = reference.quantizePerToken(numbersOf(dtype, stored), { hidden, ...options })
        expect(sameBytes(await values.read(), expected.values) && sameBytes(await scales.read(), expected.scales)).toBe(
          true,
        )
      }),
      { numRuns: 300 },
    )
  })

  test('divides exactly by its smallest scale, for all small bf16 and f16 numbers', async () => {
    for (const [dtype, count] of [
      ['bf16', 0x3b00],
      ['f16', 0x1800],
    ] as const) {
      const stored = Uint16Array.from({ length: count }, (_, i) => i)
      const { values, scales } = quantizePerToken(Tensor.copyOf(stored, [1, count], dtype))
      expect((await scales.read())[0]).toBe(Math.fround(1 / 229376))
      expect(
        sameBytes(await values.read(), reference.quantizePerToken(numbersOf(dtype, stored), { hidden: count }).values),
      ).toBe(true)
    }
  })

  test('divides exactly by a bound whose reciprocal lies next to the middle of two numbers', async () => {
    // The scale is 2 - 2^-23, and 2^-9 by it is next above the middle between the codes 0 and 1.
    const scaleUpperBound = 448 * 2 - 2 ** -14
    for (const dtype of floatDTypes) {
      for (const hidden of [8, 1024]) {
        const numbers = Array.from({ length: hidden }, (_, i) => (i === 0 ? 1000 : i % 2 === 1 ? 2 ** -9 : -(2 ** -9)))
        const x = Tensor.from(numbers, [1, hidden], dtype)
        const { values, scales } = quantizePerToken(x, { scaleUpperBound })
        expect((await scales.read())[0]).toBe(2 - 2 ** -23)
        expect([...(await bytesOf(values))]).toEqual(
          numbers.map((_, i) => (i === 0 ? 0x7e : i % 2 === 1 ? 0x01 : 0x81)),
        )
      }
    }
  })

  test('the floor, the bound and infinities', async () => {
    const x = Tensor.from([0, -0, 896, 1, Infinity, 1, NaN, 448], [4, 2], 'f32')
    const free = quantizePerToken(x)
    const bounded = quantizePerToken(x, { scaleUpperBound: 448 })
    const back = dequantizePerTokenGroup(free.values, free.scales, { groupSize: 2, dtype: 'f32' })
    expect([...(await free.scales.readNumbers())]).toEqual([Math.fround(1 / 229376), 2, Infinity, 1])
    expect([...(await bytesOf(free.values))]).toEqual([0, 0x80, 0x7e, 0x30, 0x7f, 0, 0x7f, 0x7e])
    expect([...(await bounded.scales.readNumbers())]).toEqual([Math.fround(1 / 229376), 1, 1, 1])
    expect([...(await bytesOf(bounded.values))]).toEqual([0, 0x80, 0x7e, 0x38, 0x7e, 0x38, 0x7f, 0x7e])
    expect([...(await back.readNumbers())]).toEqual([0, -0, 896, 1, NaN, NaN, NaN, 448])
  })
})

describe('quantizePerTensor and dequantizePerTensor', () => {
  const cases = fc
    .record({
      dtype: fc.constantFrom(...floatDTypes),
      count: fc.oneof(fc.integer({ min: 0, max: 300 }), fc.constantFrom(1024, 8200, 9001)),
      scaleBits: fc.option(words32, { nil: undefined }),
    })
    .chain((shape) => storedElements(shape.dtype, shape.count).map((stored) => ({ ...shape, stored })))

  test('equal the reference, with found and with given scales of any bits', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ dtype, count, scaleBits, stored }) => {
        const given = scaleBits === undefined ? undefined : floatOf(scaleBits)
        const scaleTensor =
          scaleBits === undefined
            ? {}
            : { scale: Tensor.copyOf(new Float32Array(Uint32Array.of(scaleBits).buffer), [1], 'f32') }
        const { values, scale } = quantizePerTensor(Tensor.copyOf(stored, [count], dtype), scaleTensor)
        const back = dequantizePerTensor(values, scale, { dtype })
        const expected = reference.quantizePerTensor(numbersOf(dtype, stored), given)
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        expect((await scale.read())[0]).toBe(expected.scale)
        expect(
          sameBytes(await back.read(), reference.dequantizePerTensor(expected.values, expected.scale, dtype)),
        ).toBe(true)
      }),
      { numRuns: 400 },
    )
  })

  test('zeros get 1, tiny numbers the smallest normal number, an empty tensor 1', async () => {
    const found = [[0, -0], [2 ** -149], [], [NaN], [Infinity, 1]].map(
      (numbers) => quantizePerTensor(Tensor.from(numbers, [numbers.length], 'f32')).scale,
    )
    const scales = await Promise.all(found.map((scale) => scale.read()))
    expect(scales.map(([scale]) => scale)).toEqual([1, 2 ** -126, 1, 1, Infinity])
  })

  test('of many elements on several threads, into `out`, also when a graph is replayed', async () => {
    await using own = device.createStream({ threads: 3 })
    const stored = Float32Array.from({ length: 100_001 }, (_, i) => Math.sin(i))
    const x = Tensor.copyOf(stored, [100_001], 'f32')
    const out = { values: Tensor.zeros([100_001], 'fp8e4m3'), scale: Tensor.zeros([1], 'f32') }
    const graph = Graph.capture(own, () => {
      expect(quantizePerTensor(x, { stream: own, out })).toEqual(out)
    })
    for (const place of [99_999, 5]) {
      const changed = stored.slice()
      changed[place] = -1000 * place
      copyTensor(Tensor.wrap(changed, [100_001], 'f32'), x, { stream: own })
      graph.launch(own)
      const expected = reference.quantizePerTensor(changed)
      expect((await out.scale.read({ stream: own }))[0]).toBe(expected.scale)
      expect(sameBytes(await out.values.read({ stream: own }), expected.values)).toBe(true)
    }
  })
})

test('rows divide by their scale; blocks and tensors multiply by its reciprocal, on paper', async () => {
  // 175 * f32(1 / (196 / 448)) is 400.00003, just above the middle of 384 and 416; the quotient is 400, and 384 is even.
  const [above, even] = [0x7d, 0x7c]
  // 186 of 248 the other way round: the product is 336, whose even neighbour is 320, and the quotient 336.00003.
  const [below, next] = [0x7a, 0x7b]
  for (const dtype of floatDTypes) {
    const x = Tensor.from([196, 175, 248, 186], [2, 2], dtype)
    const block = quantizeBlock(x, { blockShape: [1, 2] })
    const tensors = [x.slice(0, 1), x.slice(1, 2)].map((row) => quantizePerTensor(row))
    const rows = [quantizePerToken(x), quantizePerTokenGroup(x)]
    expect([...(await bytesOf(block.values))]).toEqual([0x7e, above, 0x7e, below])
    const codes = await Promise.all(tensors.map(({ values }) => bytesOf(values)))
    expect(codes.flatMap((row) => [...row])).toEqual([0x7e, above, 0x7e, below])
    for (const { values } of rows) expect([...(await bytesOf(values))]).toEqual([0x7e, even, 0x7e, next])
  }
})

describe('refused', () => {
  const x = Tensor.zeros([2, 8], 'bf16')
  const values = Tensor.zeros([2, 8], 'fp8e4m3')
  const one = Tensor.zeros([1], 'f32')
  test.each<readonly [string, () => unknown, string]>([
    ['a block of 0 rows', () => quantizeBlock(x, { blockShape: [0, 1] }), 'blockShape[0]'],
    ['a block of half a column', () => quantizeBlock(x, { blockShape: [1, 0.5] }), 'blockShape[1]'],
    ['a vector as a weight', () => quantizeBlock(one), 'weight'],
    ['packed block scales', () => quantizeBlock(x, { scaleFormat: 'ue8m0-packed' as never }), 'scaleFormat'],
    [
      'block out over the weight',
      () =>
        quantizeBlock(x, {
          out: {
            values: new Tensor({ memory: x.memory, dtype: 'fp8e4m3', shape: [2, 8] }),
            scales: Tensor.zeros([1, 1], 'f32'),
          },
        }),
      'out.values',
    ],
    ['scales of other blocks', () => dequantizeBlock(values, Tensor.zeros([1, 2], 'f32')), 'scales'],
    [
      'an integer result',
      () => dequantizeBlock(values, Tensor.zeros([1, 1], 'f32'), { dtype: 'i32' as never }),
      'dtype',
    ],
    ['a bound of zero', () => quantizePerToken(x, { scaleUpperBound: 0 }), 'scaleUpperBound'],
    ['rows of nothing', () => quantizePerToken(Tensor.zeros([2, 0], 'bf16')), 'x'],
    [
      'scales of no column',
      () => quantizePerToken(x, { out: { values, scales: Tensor.zeros([2], 'f32') } }),
      'out.scales',
    ],
    ['two scales', () => quantizePerTensor(x, { scale: Tensor.zeros([2], 'f32') }), 'scale'],
    ['a bf16 scale', () => dequantizePerTensor(values, Tensor.zeros([1], 'bf16')), 'scale'],
    [
      'out of another shape',
      () => quantizePerTensor(x, { out: { values: Tensor.zeros([16], 'fp8e4m3') } }),
      'out.values',
    ],
    ['out of another shape', () => dequantizePerTensor(values, one, { out: Tensor.zeros([16], 'bf16') }), 'out'],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
