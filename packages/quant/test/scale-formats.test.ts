import { e8m0ToF32, f32ToFp8E4m3, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  dequantizePerTokenGroup,
  quantizePerTokenGroup,
  reference,
  type ScaleFormat,
  type ScaleLayout,
} from '../src/index.js'
import { bytesOf, device, floatDTypes, memoryOf, numbersOf, sameBytes, storedElements } from './support.js'

const scaleFormats: readonly ScaleFormat[] = ['f32', 'ue8m0', 'ue8m0-packed']
const scaleLayouts: readonly ScaleLayout[] = ['row-major', 'column-major', 'column-major-tma']

const cases = fc
  .record({
    dtype: fc.constantFrom(...floatDTypes),
    rows: fc.integer({ min: 0, max: 9 }),
    // Whole vectors and groups of 128 often: they have kernels of their own.
    hidden: fc.oneof(fc.integer({ min: 1, max: 200 }), fc.constantFrom(8, 128, 200, 520, 768)),
    groupSize: fc.oneof(fc.integer({ min: 1, max: 220 }), fc.constantFrom(8, 16, 32, 128, 128)),
    numerics: fc.constantFrom('vllm' as const, 'deepep' as const),
    scaleFormat: fc.constantFrom(...scaleFormats),
    scaleLayout: fc.constantFrom(...scaleLayouts),
  })
  .chain((shape) => storedElements(shape.dtype, shape.rows * shape.hidden).map((stored) => ({ ...shape, stored })))

test('all formats and layouts equal the reference, gaps included', async () => {
  await fc.assert(
    fc.asyncProperty(cases, async ({ dtype, rows, hidden, stored, ...options }) => {
      const { groupSize, numerics, scaleFormat, scaleLayout } = options
      const { values, scales } = quantizePerTokenGroup(Tensor.copyOf(stored, [rows, hidden], dtype), options)
      const back = dequantizePerTokenGroup(values, scales, { groupSize, dtype })
      const groups = Math.ceil(hidden / groupSize)
      const expected = reference.quantizePerTokenGroup(numbersOf(dtype, stored), {
        hidden,
        groupSize,
        numerics,
        powerOfTwo: scaleFormat !== 'f32',
      })
      const packed = scaleFormat === 'ue8m0-packed'
      const elements = packed ? reference.packScales(expected.scales, groups) : expected.scales
      const columns = packed ? Math.ceil(groups / 4) : groups
      expect(sameBytes(await values.read(), expected.values)).toBe(true)
      expect(
        sameBytes(await memoryOf(scales), reference.arrangeScales(elements, { rows, columns, layout: scaleLayout })),
      ).toBe(true)
      const read = packed ? reference.unpackScales(elements as Int32Array, groups) : expected.scales
      const expectedBack = reference.dequantizePerTokenGroup(expected.values, read, { hidden, groupSize, dtype })
      expect(sameBytes(await back.read(), expectedBack)).toBe(true)
    }),
    { numRuns: 400 },
  )
})

describe('powers of two', () => {
  test.each([
    ['the worked value: 672 needs 2, and 336 ties to the even 320', 'vllm', [672], 2, [0x7a]],
    ['an exact power stays', 'vllm', [448, -448], 1, [0x7e, 0xfe]],
    ['zeros get 2^-33', 'vllm', [0, -0], 2 ** -33, [0, 0x80]],
    ['zeros of deepep get the power above 1e-4 / 448', 'deepep', [0, -0], 2 ** -22, [0, 0x80]],
    ['an infinity', 'vllm', [Infinity, 1, -1], Infinity, [0x7f, 0, 0x80]],
    ['a NaN is passed over', 'deepep', [NaN, 448], 1, [0x7f, 0x7e]],
  ] as const)('%s', async (_, numerics, numbers, scale, codes) => {
    for (const dtype of floatDTypes) {
      const x = Tensor.from(numbers, [1, numbers.length], dtype)
      const { values, scales } = quantizePerTokenGroup(x, { numerics, scaleFormat: 'ue8m0' })
      const packed = quantizePerTokenGroup(x, { numerics, scaleFormat: 'ue8m0-packed' })
      expect((await scales.read())[0]).toBe(scale)
      expect([...(await bytesOf(values))]).toEqual([...codes])
      expect([...(await bytesOf(packed.values))]).toEqual([...codes])
      const [byte, ...rest] = await bytesOf(packed.scales)
      expect(e8m0ToF32(byte!)).toEqual(scale === Infinity ? NaN : scale)
      expect(rest).toEqual([0, 0, 0])
    }
  })

  test('packed words of several groups: byte j of word p is group 4p + j', async () => {
    const x = Tensor.from(
      Array.from({ length: 3 * 5 }, (_, i) => 448 * 2 ** (i % 5)),
      [3, 5],
      'bf16',
    )
    const { scales } = quantizePerTokenGroup(x, { groupSize: 1, scaleFormat: 'ue8m0-packed' })
    expect([scales.shape, scales.strides]).toEqual([
      [3, 2],
      [1, 4],
    ])
    const row = [0x8281807f, 0x8281807f, 0x8281807f, 0, 0x83, 0x83, 0x83, 0]
    expect([...new Uint32Array((await memoryOf(scales)).buffer)]).toEqual(row)
  })
})

test('padding is zeroed in memory that held something else', async () => {
  const rows = 5
  const { memory } = Tensor.copyOf(new Uint8Array(4 * 8 * 2).fill(0xaa), [4 * 8 * 2], 'u8')
  const scales = new Tensor({ memory, dtype: 'i32', shape: [rows, 2], strides: [1, 8] })
  const out = { values: Tensor.zeros([rows, 5 * 32], 'fp8e4m3'), scales }
  const x = Tensor.zeros([rows, 5 * 32], 'bf16')
  quantizePerTokenGroup(x, { groupSize: 32, scaleFormat: 'ue8m0-packed', out })
  const words = [...new Uint32Array((await memoryOf(scales)).buffer)]
  expect(words.slice(0, 13)).toEqual([...Array(5).fill(0x5e5e5e5e), 0, 0, 0, ...Array(5).fill(0x5e)])
  expect(words.slice(13)).toEqual(Array(3).fill(0xaaaaaaaa)) // past the last real element
})

describe('packed scales at the sizes of models, in memory that held something else', () => {
  const sizes = [1, 3, 4, 64, 127, 128, 253].flatMap((rows) =>
    [384, 640, 768, 7168].flatMap((hidden) => [32, 128].map((groupSize) => [rows, hidden, groupSize] as const)),
  )
  test.each(sizes)('%i rows of %i in groups of %i', async (rows, hidden, groupSize) => {
    const stored = Uint16Array.from({ length: rows * hidden }, (_, i) => {
      const random = Math.imul(i + 1, 2654435761) >>> 8
      return ((random & 1) << 15) | ((110 + (random % 30)) << 7) | ((random >> 9) & 0x7f)
    })
    const groups = hidden / groupSize
    const columns = Math.ceil(groups / 4)
    const stride = Math.ceil(rows / 4) * 4
    const byteLength = 4 * stride * columns
    const { memory } = Tensor.copyOf(new Uint8Array(byteLength).fill(0xaa), [byteLength], 'u8')
    const out = {
      values: Tensor.zeros([rows, hidden], 'fp8e4m3'),
      scales: new Tensor({ memory, dtype: 'i32', shape: [rows, columns], strides: [1, stride] }),
    }
    const x = Tensor.copyOf(stored, [rows, hidden], 'bf16')
    quantizePerTokenGroup(x, { groupSize, scaleFormat: 'ue8m0-packed', out })
    // From the definition, in doubles: exact, for the scale is a power of two and the quotient has the bits of a bf16.
    const numbers = numbersOf('bf16', stored)
    const bytes = await memoryOf(out.scales)
    const codes = await bytesOf(out.values)
    for (let row = 0; row < rows; row++) {
      for (let group = 0; group < columns * 4; group++) {
        const byte = bytes[4 * (Math.floor(group / 4) * stride + row) + (group % 4)]!
        if (group >= groups) {
          expect(byte).toBe(0)
          continue
        }
        const begin = row * hidden + group * groupSize
        const amax = numbers.subarray(begin, begin + groupSize).reduce((a, b) => Math.max(a, Math.abs(b)), 1e-10)
        const exponent = Math.max(-33, Math.ceil(Math.log2(amax / 448)))
        expect(byte).toBe(exponent + 127)
        expect(codes[begin]).toBe(f32ToFp8E4m3(numbers[begin]! / 2 ** exponent))
      }
    }
    for (let column = 0; column + 1 < columns; column++)
      expect(bytes.subarray(4 * (column * stride + rows), 4 * (column + 1) * stride).every((b) => b === 0)).toBe(true)
  })
})

describe('refused', () => {
  const x = Tensor.zeros([5, 8], 'bf16')
  const values = Tensor.zeros([5, 8], 'fp8e4m3')
  test.each<readonly [string, () => unknown, string]>([
    ['an unknown format', () => quantizePerTokenGroup(x, { scaleFormat: 'e8' as never }), 'scaleFormat'],
    ['an unknown layout', () => quantizePerTokenGroup(x, { scaleLayout: 'tiled' as never }), 'scaleLayout'],
    [
      'out.scales of other strides',
      () =>
        quantizePerTokenGroup(x, {
          groupSize: 4,
          scaleLayout: 'column-major',
          out: { values, scales: Tensor.zeros([5, 2], 'f32') },
        }),
      'out.scales',
    ],
    [
      'f32 out.scales for packed ones',
      () =>
        quantizePerTokenGroup(x, { scaleFormat: 'ue8m0-packed', out: { values, scales: Tensor.zeros([5, 1], 'f32') } }),
      'out.scales',
    ],
    [
      'too few packed words',
      () => dequantizePerTokenGroup(values, Tensor.zeros([5, 1], 'i32'), { groupSize: 1 }),
      'scales',
    ],
    [
      'out inside the gaps of strided scales',
      () => {
        const memory = device.allocate(8 * 4 + 40 * 2)
        const scales = new Tensor({ memory, dtype: 'f32', shape: [5, 2], strides: [1, 12] })
        return dequantizePerTokenGroup(values, scales, {
          groupSize: 4,
          out: new Tensor({ memory, dtype: 'bf16', shape: [5, 8], byteOffset: 24 }),
        })
      },
      'out',
    ],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
