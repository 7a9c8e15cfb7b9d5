import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { dequantizeLogFmt10, logFmt10RowBytes, quantizeLogFmt10, reference } from '../src/index.js'
import { bytesOf, floatDTypes, numbersOf, sameBytes, storedElements, words16 } from './support.js'

// A warp of a GPU takes 16 groups: of one row, or of many.
const shapes = fc.oneof(
  fc.record({
    rows: fc.integer({ min: 0, max: 4 }),
    hidden: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(8, 64, 128, 136, 192, 256, 1152, 1352, 2880)),
  }),
  fc.record({ rows: fc.integer({ min: 15, max: 40 }), hidden: fc.constantFrom(8, 13, 64, 128, 136, 192, 264) }),
)

test('equals the reference, there and back', async () => {
  const cases = fc
    .record({ shape: shapes, dtype: fc.constantFrom(...floatDTypes) })
    .chain(({ shape, dtype }) =>
      storedElements('bf16', shape.rows * shape.hidden).map((stored) => ({ ...shape, dtype, stored })),
    )
  await fc.assert(
    fc.asyncProperty(cases, async ({ rows, hidden, dtype, stored }) => {
      const { codes, ranges } = quantizeLogFmt10(Tensor.copyOf(stored, [rows, hidden], 'bf16'))
      const back = dequantizeLogFmt10(codes, ranges, { hidden, dtype })
      const expected = reference.quantizeLogFmt10(numbersOf('bf16', stored), { hidden })
      expect(sameBytes(await codes.read(), expected.codes)).toBe(true)
      expect(sameBytes(await ranges.read(), expected.ranges)).toBe(true)
      const expectedBack = reference.dequantizeLogFmt10(expected.codes, expected.ranges, { hidden, dtype })
      expect(sameBytes(await back.read(), expectedBack)).toBe(true)
    }),
    { numRuns: 300 },
  )
})

test('equals the reference for codes and ranges of any bits', async () => {
  const cases = shapes.chain(({ rows, hidden }) => {
    const bytes = rows * logFmt10RowBytes(hidden)
    const words = 2 * rows * Math.ceil(hidden / 128)
    return fc.record({
      rows: fc.constant(rows),
      hidden: fc.constant(hidden),
      dtype: fc.constantFrom(...floatDTypes),
      codes: fc.uint8Array({ minLength: bytes, maxLength: bytes }),
      ranges: fc.array(words16, { minLength: words, maxLength: words }).map((all) => Uint16Array.from(all)),
    })
  })
  await fc.assert(
    fc.asyncProperty(cases, async ({ rows, hidden, dtype, codes, ranges }) => {
      const out = dequantizeLogFmt10(
        Tensor.copyOf(codes, [rows, logFmt10RowBytes(hidden)], 'u8'),
        Tensor.copyOf(ranges, [rows, Math.ceil(hidden / 128), 2], 'bf16'),
        { hidden, dtype },
      )
      expect(sameBytes(await out.read(), reference.dequantizeLogFmt10(codes, ranges, { hidden, dtype }))).toBe(true)
    }),
    { numRuns: 300 },
  )
})

test('keeps the promised error, for narrow and wide groups', async () => {
  for (const binades of [0.1, 1, 6, 31, 60]) {
    const numbers = Array.from({ length: 128 }, (_, i) => (i % 2 === 0 ? 1 : -1) * 2 ** ((-binades * i) / 127))
    const x = Tensor.from(numbers, [1, 128], 'bf16')
    const { codes, ranges } = quantizeLogFmt10(x)
    const back = dequantizeLogFmt10(codes, ranges, { hidden: 128, dtype: 'f32' })
    const stored = await x.readNumbers()
    const halfStep = (2 ** (Math.min(32, binades + 0.02) / 510) - 1) / 2
    const read = await back.readNumbers()
    read.forEach((value, i) => {
      expect(Math.abs(value - stored[i]!)).toBeLessThanOrEqual(Math.abs(stored[i]!) * (halfStep + 2 ** -14) + 2 ** -32)
    })
  }
})

test('equal magnitudes, the ends of the range and powers come back exactly', async () => {
  for (const numbers of [
    [3, -3, 3],
    [0.5, 1, 100, -0.5, -100],
    [2 ** -133, -(2 ** 120)],
    [1e-40, 1e-40],
  ]) {
    const x = Tensor.from(numbers, [1, numbers.length], 'bf16')
    const { codes, ranges } = quantizeLogFmt10(x)
    const back = dequantizeLogFmt10(codes, ranges, { hidden: numbers.length })
    const [stored, read] = [await x.readNumbers(), await back.readNumbers()]
    const [first, last] = [Math.min(...stored.map(Math.abs)), Math.max(...stored.map(Math.abs))]
    stored.forEach((value, i) => {
      // A smallest magnitude more than 32 binades below the largest is lost.
      if (Math.abs(value) === last || (Math.abs(value) === first && last / first < 2 ** 32)) {
        expect(read[i]).toBe(value)
      }
    })
  }
})

test('rows of any number of whole and half groups, there and back', async () => {
  for (const hidden of [64, 192, 960, 1856, 1920, 1984, 2048, 2112, 2880, 7104]) {
    const rows = 37
    const stored = Uint16Array.from({ length: rows * hidden }, (_, i) => {
      const random = Math.imul(i + hidden, 2654435761) >>> 8
      return ((random & 1) << 15) | ((110 + (random % 20)) << 7) | ((random >> 9) & 0x7f)
    })
    const { codes, ranges } = quantizeLogFmt10(Tensor.copyOf(stored, [rows, hidden], 'bf16'))
    const expected = reference.quantizeLogFmt10(numbersOf('bf16', stored), { hidden })
    expect(sameBytes(await codes.read(), expected.codes)).toBe(true)
    expect(sameBytes(await ranges.read(), expected.ranges)).toBe(true)
    const back = dequantizeLogFmt10(codes, ranges, { hidden })
    const expectedBack = reference.dequantizeLogFmt10(expected.codes, expected.ranges, { hidden, dtype: 'bf16' })
    expect(sameBytes(await back.read(), expectedBack)).toBe(true)
  }
})

test('groups of all kinds, alone and beside each other', async () => {
  // Of each kind an element by its place: what takes short ways on a GPU, and what does not.
  const random = (i: number): number => Math.imul(i + 1, 2654435761) >>> 8
  const kinds: ((i: number) => number)[] = [
    () => 0x3f80,
    (i) => (i % 3 === 0 ? 0 : 0xbf80),
    () => 0x8000,
    (i) => (i % 2 === 0 ? 0x0080 : 0x0081),
    (i) => (i % 5 === 0 ? 0x8000 : 0x3f80 + (random(i) & 1)),
    (i) => random(i) & 0x807f,
    (i) => (i === 7 ? 0x0001 : 0x3f80 + (random(i) & 0x7f)),
    (i) => 0x0080 + (random(i) % 0x7f00),
    (i) => (i === 9 ? 0x7f80 : 0x4000 + (random(i) & 0x81ff)),
    (i) => (i % 11 === 0 ? 0x7fff : random(i) & 0xbfff),
    (i) => (i % 4 === 0 ? 0 : 0x4700 | (random(i) & 0x80ff)),
  ]
  const rows = [...kinds.map((kind) => [kind]), ...kinds.map((kind) => [kinds[7]!, kind]), kinds]
  // Whole groups, and rows with a short last one, of which a warp on a GPU has one at most, or many.
  for (const hidden of [128, 2048, 5120, 1984, 2880, 72, 192]) {
    const stored = Uint16Array.from({ length: rows.length * hidden }, (_, i) => {
      const row = rows[Math.floor(i / hidden)]!
      const group = Math.floor((i % hidden) / 128)
      return row[group % row.length]!(i % 128) & 0xffff
    })
    const { codes, ranges } = quantizeLogFmt10(Tensor.copyOf(stored, [rows.length, hidden], 'bf16'))
    const expected = reference.quantizeLogFmt10(numbersOf('bf16', stored), { hidden })
    expect(sameBytes(await codes.read(), expected.codes)).toBe(true)
    expect(sameBytes(await ranges.read(), expected.ranges)).toBe(true)
  }
})

test('codes of all groups become the nearest bf16, also next to the middle between two', async () => {
  const [rows, hidden] = [64, 8192]
  const ranges = Uint16Array.from({ length: (rows * hidden) / 64 }, (_, i) => {
    const random = Math.imul((i >> 1) + 1, 2654435761) >>> 8
    if (i % 64 < 2) return (Math.imul(i + 1, 2654435761) >>> 8) & 0xffff // one in 32 of any bits
    const smallest = 0x0080 + (random % 0x7f00)
    return i % 2 === 0 ? smallest : Math.min(0x7f7f, smallest + ((random >> 12) % 0x1000))
  })
  const codes = Uint8Array.from(
    { length: rows * logFmt10RowBytes(hidden) },
    (_, i) => Math.imul(i + 1, 2246822519) >>> 21,
  )
  const back = dequantizeLogFmt10(
    Tensor.copyOf(codes, [rows, logFmt10RowBytes(hidden)], 'u8'),
    Tensor.copyOf(ranges, [rows, hidden / 128, 2], 'bf16'),
    { hidden },
  )
  expect(sameBytes(await back.read(), reference.dequantizeLogFmt10(codes, ranges, { hidden, dtype: 'bf16' }))).toBe(
    true,
  )
})

test('zeros, NaN and infinities', async () => {
  const numbers = [0, -0, NaN, Infinity, -Infinity, 4, -1]
  const { codes, ranges } = quantizeLogFmt10(Tensor.from(numbers, [1, 7], 'bf16'))
  const back = dequantizeLogFmt10(codes, ranges, { hidden: 7, dtype: 'f32' })
  const zeros = quantizeLogFmt10(Tensor.from([0, -0], [1, 2], 'bf16'))
  expect([...(await back.readNumbers())]).toEqual([0, 0, NaN, NaN, NaN, 4, -1])
  expect([...(await ranges.readNumbers())]).toEqual([1, 4])
  expect([...(await bytesOf(codes))]).toEqual([0, 0, 0, 0x20, 0x80, 0x00, 0xfe, 0x17, 0x20])
  expect([...(await bytesOf(zeros.codes)), ...(await bytesOf(zeros.ranges))]).toEqual(Array(7).fill(0))
})

describe('refused', () => {
  const codes = Tensor.zeros([2, 10], 'u8')
  const ranges = Tensor.zeros([2, 1, 2], 'bf16')
  test.each<readonly [string, () => unknown, string]>([
    ['f32 rows', () => quantizeLogFmt10(Tensor.zeros([2, 8], 'f32')), 'x'],
    ['rows of nothing', () => quantizeLogFmt10(Tensor.zeros([2, 0], 'bf16')), 'x'],
    ['bytes of another width', () => dequantizeLogFmt10(codes, ranges, { hidden: 9 }), 'codes'],
    ['half an element', () => dequantizeLogFmt10(codes, ranges, { hidden: 7.5 }), 'hidden'],
    [
      'ranges of more groups',
      () => dequantizeLogFmt10(codes, Tensor.zeros([2, 2, 2], 'bf16'), { hidden: 8 }),
      'ranges',
    ],
    ['an integer result', () => dequantizeLogFmt10(codes, ranges, { hidden: 8, dtype: 'i32' as never }), 'dtype'],
    [
      'out of codes of another width',
      () => quantizeLogFmt10(Tensor.zeros([2, 8], 'bf16'), { out: { codes: Tensor.zeros([2, 16], 'u8'), ranges } }),
      'out.codes',
    ],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
