import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  dequantizeMxfp4,
  dequantizeMxfp8,
  dequantizeNvfp4,
  nvfp4ScaleShape,
  quantizeMxfp4,
  quantizeMxfp8,
  quantizeNvfp4,
  reference,
} from '../src/index.js'
import { bytesOf, floatDTypes, numbersOf, sameBytes, storedElements, words32 } from './support.js'

const f32 = (bits: number): Float32Array => new Float32Array(Uint32Array.of(bits).buffer)
const shapes = fc.record({
  dtype: fc.constantFrom(...floatDTypes),
  rows: fc.integer({ min: 0, max: 5 }),
  pairs: fc.oneof(fc.integer({ min: 1, max: 100 }), fc.constantFrom(16, 512, 530)),
})

const mxCases = fc
  .record({
    shape: shapes,
    format: fc.constantFrom(
      ...(['ocp', 'ceil'] as const).map((scaleRule) => ({ kind: 'fp8e4m3' as const, scaleRule })),
      ...(['ocp', 'ceil', 'even'] as const).map((scaleRule) => ({ kind: 'fp4e2m1' as const, scaleRule })),
    ),
    odd: fc.boolean(),
  })
  .map(({ shape: { pairs, ...shape }, format, odd }) => ({
    ...shape,
    ...format,
    hidden: 2 * pairs - (odd && format.kind === 'fp8e4m3' ? 1 : 0),
  }))
  .chain((shape) => storedElements(shape.dtype, shape.rows * shape.hidden).map((stored) => ({ ...shape, stored })))

describe('MXFP8 and MXFP4', () => {
  test('equal the reference, there and back', async () => {
    await fc.assert(
      fc.asyncProperty(mxCases, async ({ dtype, rows, hidden, kind, scaleRule, stored }) => {
        const x = Tensor.copyOf(stored, [rows, hidden], dtype)
        const { values, scales } =
          kind === 'fp8e4m3'
            ? quantizeMxfp8(x, { scaleRule: scaleRule as 'ocp' | 'ceil' })
            : quantizeMxfp4(x, { scaleRule })
        const back = (kind === 'fp8e4m3' ? dequantizeMxfp8 : dequantizeMxfp4)(values, scales, { dtype })
        const expected = reference.quantizeMx(numbersOf(dtype, stored), { hidden, dtype: kind, scaleRule })
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        expect(sameBytes(await scales.read(), expected.scales)).toBe(true)
        const expectedBack = reference.dequantizeMx(expected.values, expected.scales, {
          hidden,
          dtype: kind,
          to: dtype,
        })
        expect(sameBytes(await back.read(), expectedBack)).toBe(true)
      }),
      { numRuns: 400 },
    )
  })

  test('equal the reference for every bf16 amax, and give every value under every scale', async () => {
    // Each group: a number and what lies below it in steps that meet ties.
    const stored = Uint16Array.from({ length: 0x8000 * 32 }, (_, i) => Math.max(0, (i >> 5) - (((i & 31) * 37) % 500)))
    const x = Tensor.copyOf(stored, [0x400, 32 * 32], 'bf16')
    const codes = Uint8Array.from({ length: 256 * 256 }, (_, i) => i)
    for (const kind of ['fp8e4m3', 'fp4e2m1'] as const) {
      for (const scaleRule of ['ocp', 'ceil', 'even'] as const) {
        if (kind === 'fp8e4m3' && scaleRule === 'even') continue
        const { values, scales } =
          kind === 'fp8e4m3'
            ? quantizeMxfp8(x, { scaleRule: scaleRule as 'ocp' | 'ceil' })
            : quantizeMxfp4(x, { scaleRule })
        const expected = reference.quantizeMx(numbersOf('bf16', stored), { hidden: 1024, dtype: kind, scaleRule })
        expect(sameBytes(await values.read(), expected.values) && sameBytes(await scales.read(), expected.scales)).toBe(
          true,
        )
      }
      const hidden = kind === 'fp8e4m3' ? 256 : 512
      const scales = Uint8Array.from({ length: 256 * (hidden / 32) }, (_, i) => Math.floor(i / (hidden / 32)))
      for (const dtype of floatDTypes) {
        const out = (kind === 'fp8e4m3' ? dequantizeMxfp8 : dequantizeMxfp4)(
          Tensor.copyOf(codes, [256, hidden], kind),
          Tensor.copyOf(scales, [256, hidden / 32], 'e8m0'),
          { dtype },
        )
        expect(
          sameBytes(await out.read(), reference.dequantizeMx(codes, scales, { hidden, dtype: kind, to: dtype })),
        ).toBe(true)
      }
    }
  })

  test.each([
    ['MXFP8 ocp saturates above 1.75 binades', 'fp8', 'ocp', [480, 1], 127, [0x7e, 0x38]],
    ['MXFP8 ceil does not', 'fp8', 'ceil', [480, 1], 128, [0x77, 0x30]],
    ['MXFP8 zeros', 'fp8', 'ocp', [0, -0], 0, [0, 0x80]],
    ['MXFP8 tiny amax with ceil', 'fp8', 'ceil', [2 ** -126, 0], 0, [0x40, 0]],
    ['MXFP8 passes NaN over', 'fp8', 'ocp', [NaN, 256], 127, [0x7f, 0x78]],
    ['MXFP8 with an infinity', 'fp8', 'ceil', [-Infinity, -1], 255, [0x7f, 0x80]],
    ['MXFP4 ocp', 'fp4', 'ocp', [7, -1], 127, [0xa7]],
    ['MXFP4 even counts 7 as 8', 'fp4', 'even', [7, -1], 128, [0x96]],
    ['MXFP4 even, just below', 'fp4', 'even', [6.9375, -1], 127, [0xa7]],
    ['MXFP4 ceil', 'fp4', 'ceil', [7, -1], 128, [0x96]],
    ['MXFP4 ties to even', 'fp4', 'ocp', [5, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 6], 127, [0x06, 0x22, 0x44, 0x76]],
    ['MXFP4 with a NaN', 'fp4', 'ocp', [NaN, -1], 255, [0x87]],
    ['MXFP4 with an infinity', 'fp4', 'ocp', [1, -Infinity], 255, [0x70]],
  ] as const)('%s', async (_, kind, scaleRule, numbers, scale, codes) => {
    const x = Tensor.from(numbers, [1, numbers.length], 'f32')
    const { values, scales } =
      kind === 'fp8' ? quantizeMxfp8(x, { scaleRule: scaleRule as 'ocp' }) : quantizeMxfp4(x, { scaleRule })
    expect([...(await bytesOf(scales))]).toEqual([scale])
    expect([...(await bytesOf(values))]).toEqual([...codes])
  })
})

describe('NVFP4', () => {
  const cases = fc
    .record({
      shape: shapes,
      globalBits: fc.oneof(words32, fc.integer({ min: 0x3f800000, max: 0x46000000 })),
      scaleLayout: fc.constantFrom('row-major' as const, 'swizzled' as const),
    })
    .map(({ shape: { pairs, ...shape }, ...rest }) => ({ ...shape, ...rest, hidden: 2 * pairs }))
    .chain((shape) => storedElements(shape.dtype, shape.rows * shape.hidden).map((stored) => ({ ...shape, stored })))

  test('equals the reference, there and back, in both scale layouts', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ dtype, rows, hidden, globalBits, scaleLayout, stored }) => {
        const globalScale = f32(globalBits)
        const globalTensor = Tensor.copyOf(globalScale, [1], 'f32')
        const x = Tensor.copyOf(stored, [rows, hidden], dtype)
        const { values, scales } = quantizeNvfp4(x, globalTensor, { scaleLayout })
        const back = dequantizeNvfp4(values, scales, globalTensor, { scaleLayout, dtype })
        const options = { hidden, globalScale: globalScale[0]! }
        const expected = reference.quantizeNvfp4(numbersOf(dtype, stored), options)
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        const arranged = { rows, groups: Math.ceil(hidden / 16), layout: scaleLayout }
        expect(sameBytes(await scales.read(), reference.arrangeNvfp4Scales(expected.scales, arranged))).toBe(true)
        const expectedBack = reference.dequantizeNvfp4(expected.values, expected.scales, { ...options, to: dtype })
        expect(sameBytes(await back.read(), expectedBack)).toBe(true)
      }),
      { numRuns: 400 },
    )
  })

  test('divides as IEEE does, also where the quotient lies next to the middle between two numbers', async () => {
    // 0.5 * 15 divided by 1 + 2^-21: half a unit in the last place and 2^-18 of it.
    const values = Tensor.copyOf(new Uint8Array(8).fill(0x11), [1, 16], 'fp4e2m1')
    const scales = Tensor.copyOf(Uint8Array.of(0x57), [1, 1], 'fp8e4m3')
    const globalScale = f32(1065353220)
    const back = dequantizeNvfp4(values, scales, Tensor.copyOf(globalScale, [1], 'f32'), { dtype: 'f32' })
    expect(await back.read()).toEqual(new Float32Array(16).fill(7.5 / globalScale[0]!))
  })

  // A row for each scale code, in which each group has all sixteen codes.
  test.each([
    ['plain numbers from 2^-89 to 2^89', [1, 27, 3.3333332538604736, 2 ** 89, 1.9999998807907104, 2 ** -89]],
    ['smaller or larger', [2 ** -90, 2 ** -120, 1e-40, 2 ** 90, 3e38, Infinity]],
    ['negative, zero and NaN', [-2.5, 0, -0, NaN]],
  ])('gives back all codes of all scales, global scales that are %s', async (_, globalScales) => {
    const hidden = 48
    const codes = new Uint8Array((256 * hidden) / 2).map((__, i) => 0x10 + 0x22 * (i % 8))
    const scaleCodes = new Uint8Array((256 * hidden) / 16).map((__, i) => Math.floor(i / 3))
    const values = Tensor.copyOf(codes, [256, hidden], 'fp4e2m1')
    const scales = Tensor.copyOf(scaleCodes, [256, 3], 'fp8e4m3')
    for (const globalScale of globalScales) {
      const globalTensor = Tensor.from([globalScale], [1], 'f32')
      for (const dtype of ['bf16', 'f16', 'f32'] as const) {
        const back = dequantizeNvfp4(values, scales, globalTensor, { dtype })
        const options = { hidden, globalScale: Math.fround(globalScale), to: dtype }
        expect(sameBytes(await back.read(), reference.dequantizeNvfp4(codes, scaleCodes, options))).toBe(true)
      }
    }
  })

  test('swizzled scales of several tiles, in memory that held something else', async () => {
    const [rows, hidden] = [150, 16 * 6]
    const numbers = Array.from({ length: rows * hidden }, (_, i) => 1 + ((i * 31) % 97))
    const x = Tensor.from(numbers, [rows, hidden], 'bf16')
    const shape = nvfp4ScaleShape(rows, hidden, 'swizzled')
    const scales = Tensor.copyOf(new Uint8Array(256 * 8).fill(0x55), shape, 'fp8e4m3')
    const out = { values: Tensor.zeros([rows, hidden], 'fp4e2m1'), scales }
    quantizeNvfp4(x, Tensor.from([27], [1], 'f32'), { scaleLayout: 'swizzled', out })
    const expected = reference.quantizeNvfp4(await x.readNumbers(), { hidden, globalScale: 27 })
    expect(shape).toEqual([256, 8])
    expect(
      sameBytes(
        await scales.read(),
        reference.arrangeNvfp4Scales(expected.scales, { rows, groups: 6, layout: 'swizzled' }),
      ),
    ).toBe(true)
    // Row 140, group 5: the second tile of the second row of tiles.
    expect((await bytesOf(scales))[3 * 512 + 12 * 16 + 1]).toBe(expected.scales[140 * 6 + 5])
  })

  test.each([
    ['an exact group', 1, [6, -3, 0.5, -0], 0x38, [0xd7, 0x81]],
    ['zeros', 100, [0, -0], 0, [0x80]],
    ['a scale that is too large saturates', 1000, [6, 1], 0x7e, [0x47]],
    ['a NaN', 1, [NaN, -1], 0x7f, [0x87]],
    ['an infinity', 1, [-Infinity, 1], 0x7f, [0x07]],
  ] as const)('%s', async (_, globalScale, numbers, scale, codes) => {
    const x = Tensor.from(numbers, [1, numbers.length], 'f32')
    const { values, scales } = quantizeNvfp4(x, Tensor.from([globalScale], [1], 'f32'))
    expect([...(await bytesOf(scales))]).toEqual([scale])
    expect([...(await bytesOf(values))]).toEqual([...codes])
  })

  test('gives back what was quantised, within the half step of e2m1 and the scale rounding', async () => {
    const numbers = Array.from({ length: 2 * 320 }, (_, i) => Math.sin(i) * (1 + (i % 5)))
    const globalScale = Tensor.from([(448 * 6) / Math.max(...numbers.map(Math.abs))], [1], 'f32')
    const { values, scales } = quantizeNvfp4(Tensor.from(numbers, [2, 320], 'f32'), globalScale)
    const back = dequantizeNvfp4(values, scales, globalScale, { dtype: 'f32' })
    const found = await back.readNumbers()
    for (let begin = 0; begin < numbers.length; begin += 16) {
      const amax = Math.max(...numbers.slice(begin, begin + 16).map(Math.abs))
      for (let i = begin; i < begin + 16; i++)
        expect(Math.abs(found[i]! - numbers[i]!)).toBeLessThanOrEqual(amax * 0.19)
    }
  })
})

describe('refused', () => {
  const x = Tensor.zeros([2, 8], 'bf16')
  const values = Tensor.zeros([2, 8], 'fp4e2m1')
  const one = Tensor.zeros([1], 'f32')
  test.each<readonly [string, () => unknown, string]>([
    ['an odd row for MXFP4', () => quantizeMxfp4(Tensor.zeros([2, 7], 'bf16')), 'x'],
    ['an odd row for NVFP4', () => quantizeNvfp4(Tensor.zeros([2, 7], 'bf16'), one), 'x'],
    ['rows of nothing', () => quantizeMxfp8(Tensor.zeros([2, 0], 'bf16')), 'x'],
    ['the even rule for MXFP8', () => quantizeMxfp8(x, { scaleRule: 'even' as never }), 'scaleRule'],
    ['f32 scales', () => dequantizeMxfp4(values, Tensor.zeros([2, 1], 'f32')), 'scales'],
    ['scales of other groups', () => dequantizeMxfp4(values, Tensor.zeros([2, 2], 'e8m0')), 'scales'],
    ['fp4 values as MXFP8', () => dequantizeMxfp8(values, Tensor.zeros([2, 1], 'e8m0')), 'values'],
    [
      'an integer result',
      () => dequantizeMxfp4(values, Tensor.zeros([2, 1], 'e8m0'), { dtype: 'u8' as never }),
      'dtype',
    ],
    ['a global scale of two', () => quantizeNvfp4(x, Tensor.zeros([2], 'f32')), 'globalScale'],
    ['an unknown layout', () => quantizeNvfp4(x, one, { scaleLayout: 'tiled' as never }), 'scaleLayout'],
    [
      'row-major scales as swizzled',
      () => dequantizeNvfp4(values, Tensor.zeros([2, 1], 'fp8e4m3'), one, { scaleLayout: 'swizzled' }),
      'scales',
    ],
    [
      'out over x',
      () =>
        quantizeMxfp4(x, {
          out: {
            values: new Tensor({ memory: x.memory, dtype: 'fp4e2m1', shape: [2, 8] }),
            scales: Tensor.zeros([2, 1], 'e8m0'),
          },
        }),
      'out.values',
    ],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
