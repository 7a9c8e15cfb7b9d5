import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { repeats } from '../../../tooling/vitest/repeats.js'
import {
  dequantizePerTokenGroup,
  quantizePerTokenGroup,
  reference,
  type ScaleFormat,
  type ScaleLayout,
  siluMul,
  siluMulQuantize,
} from '../src/index.js'
import { bytesOf, device, floatDTypes, memoryOf, numbersOf, sameBytes, storedElements } from './support.js'

const shapes = fc.record({
  dtype: fc.constantFrom(...floatDTypes),
  rows: fc.integer({ min: 0, max: 5 }),
  // Whole vectors and groups of 128 often: they have kernels of their own.
  hidden: fc.oneof(fc.integer({ min: 1, max: 150 }), fc.constantFrom(128, 136, 256, 640)),
  clampLimit: fc.constantFrom(undefined, 7, 10, 0.5),
})
const inputs = shapes.chain((shape) =>
  storedElements(shape.dtype, shape.rows * 2 * shape.hidden).map((stored) => ({ ...shape, stored })),
)
const limitOf = (clampLimit: number | undefined): { clampLimit?: number } =>
  clampLimit === undefined ? {} : { clampLimit }

/**
 * So many rows of 2120 that warps of all multiprocessors have several pieces of them, and odd ones each number of the table:
 * 4097 on a GPU of 132.
 */
const manyRows = Math.max(1025, 'multiprocessors' in device ? 31 * (device.multiprocessors as number) + 5 : 0)

describe('siluMul', () => {
  test('equals the reference', async () => {
    await fc.assert(
      fc.asyncProperty(inputs, async ({ dtype, rows, hidden, clampLimit, stored }) => {
        const out = siluMul(Tensor.copyOf(stored, [rows, 2 * hidden], dtype), limitOf(clampLimit))
        const expected = reference.siluMul(numbersOf(dtype, stored), { hidden, dtype, ...limitOf(clampLimit) })
        expect(sameBytes(await out.read(), expected)).toBe(true)
      }),
      { numRuns: 300 },
    )
  })

  test('equals the reference for every bf16 and f16 gate, and for f32 gates of all exponents', async () => {
    for (const dtype of floatDTypes) {
      const count = 1 << 16
      const stored =
        dtype === 'f32'
          ? new Float32Array(
              Uint32Array.from({ length: 2 * count }, (_, i) => (i < count ? i * 65521 : 0x3f800000)).buffer,
            )
          : Uint16Array.from({ length: 2 * count }, (_, i) => (i < count ? i : dtype === 'bf16' ? 0x3f80 : 0x3c00))
      const out = siluMul(Tensor.copyOf(stored, [1, 2 * count], dtype))
      expect(sameBytes(await out.read(), reference.siluMul(numbersOf(dtype, stored), { hidden: count, dtype }))).toBe(
        true,
      )
    }
  })

  test('is close to the real function', async () => {
    const gates = Array.from({ length: 400 }, (_, i) => Math.fround(i / 10 - 20))
    const out = siluMul(Tensor.from([...gates, ...gates.map(() => 2)], [1, 800], 'f32'))
    const numbers = await out.readNumbers()
    gates.forEach((gate, i) => {
      const exact = (2 * gate) / (1 + Math.exp(-gate))
      expect(Math.abs(numbers[i]! - exact)).toBeLessThanOrEqual(Math.abs(exact) * 2 ** -21)
    })
  })

  test.each([
    ['zeros', [0, -0], [1, 1], undefined, [0, -0]],
    ['an infinite gate', [Infinity], [2], undefined, [Infinity]],
    ['a gate of minus infinity', [-Infinity], [2], undefined, [NaN]],
    ['NaN', [NaN, 1], [1, NaN], undefined, [NaN, NaN]],
    ['a gate that the exponential overflows for', [-100], [1], undefined, [-0]],
    ['limits', [100, -100, 100], [-100, 100, 1], 8, [-63.97853, -0, 7.9973164]],
    ['NaN under limits', [NaN, 1], [1, NaN], 8, [NaN, NaN]],
  ] as const)('%s', async (_, gates, ups, clampLimit, expected) => {
    const out = siluMul(Tensor.from([...gates, ...ups], [1, 2 * gates.length], 'f32'), limitOf(clampLimit))
    const read = await out.readNumbers()
    read.forEach((value, i) => {
      if (Number.isFinite(value)) expect(value).toBeCloseTo(expected[i]!, 4)
      else expect(value).toBe(expected[i])
    })
  })
})

const quantizeCases = fc
  .record({
    shape: shapes,
    groupSize: fc.oneof(fc.integer({ min: 1, max: 160 }), fc.constantFrom(32, 128)),
    numerics: fc.constantFrom('unfused' as const, 'vllm-contiguous' as const, 'vllm-masked' as const, 'f32' as const),
    scaleFormat: fc.constantFrom<ScaleFormat>('f32', 'ue8m0', 'ue8m0-packed'),
    scaleLayout: fc.constantFrom<ScaleLayout>('row-major', 'column-major', 'column-major-tma'),
  })
  .map(({ shape, ...options }) => ({
    ...options,
    ...shape,
    dtype: options.numerics === 'vllm-masked' ? ('bf16' as const) : shape.dtype,
  }))
  .chain((options) =>
    storedElements(options.dtype, options.rows * 2 * options.hidden).map((stored) => ({ ...options, stored })),
  )

describe('siluMulQuantize', () => {
  test('equals the reference for all numerics, formats and layouts', async () => {
    await fc.assert(
      fc.asyncProperty(quantizeCases, async ({ dtype, rows, hidden, clampLimit, stored, ...options }) => {
        const x = Tensor.copyOf(stored, [rows, 2 * hidden], dtype)
        const { values, scales } = siluMulQuantize(x, { ...options, ...limitOf(clampLimit) })
        const { groupSize, numerics, scaleFormat, scaleLayout } = options
        const expected = reference.siluMulQuantize(numbersOf(dtype, stored), {
          hidden,
          dtype,
          groupSize,
          numerics,
          powerOfTwo: scaleFormat !== 'f32',
          ...limitOf(clampLimit),
        })
        const groups = Math.ceil(hidden / groupSize)
        const packed = scaleFormat === 'ue8m0-packed'
        const columns = packed ? Math.ceil(groups / 4) : groups
        const elements = packed ? reference.packScales(expected.scales, groups) : expected.scales
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        expect(
          sameBytes(await memoryOf(scales), reference.arrangeScales(elements, { rows, columns, layout: scaleLayout })),
        ).toBe(true)
      }),
      { numRuns: 500 },
    )
  })

  test('equals the reference under scales of every magnitude, where the masked numerics saturate too', async () => {
    // A group for each amax of one bf16 significand step in every binade; silu(60) = 60, ups carry the magnitudes.
    const hidden = 64
    const rows = 600
    const stored = Uint16Array.from({ length: rows * 2 * hidden }, (_, i) => {
      const column = i % (2 * hidden)
      const row = Math.floor(i / (2 * hidden))
      if (column < hidden) return 0x3f80 | (column << 1)
      return Math.min(0x7f00, 0x1000 + row * 47 - (column - hidden))
    })
    for (const numerics of ['vllm-contiguous', 'vllm-masked', 'f32'] as const) {
      for (const powerOfTwo of [false, true]) {
        const scaleFormat = powerOfTwo ? 'ue8m0' : 'f32'
        const x = Tensor.copyOf(stored, [rows, 2 * hidden], 'bf16')
        const { values, scales } = siluMulQuantize(x, { groupSize: hidden, numerics, scaleFormat })
        const options = { hidden, dtype: 'bf16', groupSize: hidden, numerics, powerOfTwo } as const
        const expected = reference.siluMulQuantize(numbersOf('bf16', stored), options)
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        expect(sameBytes(await scales.read(), expected.scales)).toBe(true)
      }
    }
  })

  test('divides as IEEE does, also by the one number whose reciprocal lies next to the middle of two', async () => {
    for (const dtype of ['bf16', 'f16', 'f32'] as const) {
      // A row for each gate, so that its scale shows all bits of the product; 1 + e^(-2^-23) = 2 - 2^-23.
      const gates = [2 ** -23, -(2 ** -23), 2 ** -22, 2 ** -24, 0, -0, 1, -1, 79, -79]
      const hidden = 128
      const numbers = gates.flatMap((gate) => [
        ...Array.from({ length: hidden }, () => gate),
        ...Array.from({ length: hidden }, () => 64),
      ])
      // Few rows, and so many that a GPU looks bf16 up.
      for (const copies of dtype === 'bf16' ? [1, 900] : [1]) {
        const rows = copies * gates.length
        const x = Tensor.from(Array.from({ length: copies }, () => numbers).flat(), [rows, 2 * hidden], dtype)
        const { values, scales } = siluMulQuantize(x, { numerics: 'f32' })
        const elements = (await x.readNumbers()) as Float32Array
        const expected = reference.siluMulQuantize(elements, { hidden, dtype, groupSize: hidden, numerics: 'f32' })
        expect(sameBytes(await values.read(), expected.values)).toBe(true)
        expect(sameBytes(await scales.read(), expected.scales)).toBe(true)
        expect(sameBytes(await siluMul(x).read(), reference.siluMul(elements, { hidden, dtype }))).toBe(true)
      }
    }
  })

  // On a GPU many rows of bf16 look gates up in a table, few have a formula.
  test.each(['unfused', 'vllm-masked', 'f32'] as const)('many rows are what few are: %s', async (numerics) => {
    const [rows, few, hidden] = [manyRows, 64, 2120]
    const groups = Math.ceil(hidden / 128)
    const stored = new Uint16Array(rows * 2 * hidden)
    for (let i = 0, state = 1; i < stored.length; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      const bits = state >>> 16
      const [row, column] = [Math.floor(i / (2 * hidden)), i % (2 * hidden)]
      const sign = bits & 0x8000
      // In odd rows each group has one gate, all of the table in turn, so that its scale shows it.
      const place = ((row >> 1) * groups + Math.floor((column % hidden) / 128)) % 8192
      const gate = 0x3280 + (place % 4096) + (place < 4096 ? 0 : 0x8000)
      if (column < hidden) {
        // In the others any gates, also NaN and infinities, or magnitudes from 2^-28 to 2^8, or zeros.
        stored[i] =
          row % 2 === 1 ? gate : row % 8 === 6 ? sign : row % 4 === 0 ? bits : sign | (0x3180 + (bits % (36 << 7)))
      } else {
        // Silu of numbers far below zero is near it.
        stored[i] =
          row % 2 === 1 ? (gate >= 0xc180 ? 0x6c80 : 0x3f80) | (bits & 0x7f) : sign | (0x3e00 + (bits & 0x1ff))
      }
    }
    const x = Tensor.copyOf(stored, [rows, 2 * hidden], 'bf16')
    const cases: { scaleFormat: ScaleFormat; clampLimit?: number }[] = [
      { scaleFormat: 'f32' },
      { scaleFormat: 'f32', clampLimit: 7 },
      { scaleFormat: 'ue8m0-packed' },
      // No gate is above that: positive ones are below the table, and so are those that stand for what rows lack.
      { scaleFormat: 'f32', clampLimit: 2 ** -30 },
    ]
    for (const { scaleFormat, clampLimit } of cases.slice(0, repeats(cases.length))) {
      const options = { numerics, scaleFormat, ...limitOf(clampLimit) }
      const many = siluMulQuantize(x, { ...options, scaleLayout: 'row-major' })
      const [values, scales] = [await bytesOf(many.values), await bytesOf(many.scales)]
      const own = (bytes: Uint8Array, row: number): Uint8Array =>
        bytes.subarray((row * bytes.length) / rows, (Math.min(row + few, rows) * bytes.length) / rows)
      for (let row = 0; row < rows; row += few) {
        const part = stored.subarray(row * 2 * hidden, (row + few) * 2 * hidden)
        const partOf = Tensor.copyOf(part, [part.length / (2 * hidden), 2 * hidden], 'bf16')
        const some = siluMulQuantize(partOf, { ...options, scaleLayout: 'row-major' })
        expect(sameBytes(await some.values.read(), own(values, row))).toBe(true)
        expect(sameBytes(await bytesOf(some.scales), own(scales, row))).toBe(true)
      }
      // The rows are no multiple of four, which leaves gaps between columns.
      const layout = 'column-major-tma'
      const byColumns = siluMulQuantize(x, { ...options, scaleLayout: layout })
      const columns = many.scales.shape[1]!
      const elements = (await many.scales.read()) as Float32Array
      expect(
        sameBytes(await memoryOf(byColumns.scales), reference.arrangeScales(elements, { rows, columns, layout })),
      ).toBe(true)
    }
  })

  // What tells blocks which rows nobody has yet must be as new after any call, also one that writes nothing.
  test('many rows are complete behind other many, behind none and behind a failure', async () => {
    const [hidden, groups] = [2120, 17]
    const gated = (rows: number): Tensor =>
      Tensor.copyOf(new Uint16Array(rows * 2 * hidden).fill(0x3f80), [1, rows, 2 * hidden], 'bf16')
    const stream = device.createStream()
    const [one, some, more] = [gated(1), gated(manyRows), gated(manyRows + 903)]
    const options = { scaleLayout: 'row-major' } as const
    const expected = siluMulQuantize(one, options)
    const [rowValues, rowScales] = [await bytesOf(expected.values), await bytesOf(expected.scales)]
    const rowsOf = (bytes: Uint8Array, row: Uint8Array): Uint8Array[] =>
      Array.from({ length: bytes.length / row.length }, (_, i) => bytes.subarray(i * row.length, (i + 1) * row.length))
    const differing = (bytes: Uint8Array, row: Uint8Array): number =>
      rowsOf(bytes, row).filter((other) => !sameBytes(other, row)).length
    const calls = [
      [some, 'all'],
      [more, 'fails'],
      [some, 'fails'],
      [more, 'all'],
      [some, 'none'],
      [one, 'all'],
      [some, 'all'],
    ] as const
    for (const [x, kind] of calls) {
      const rows = x.shape[1]!
      const values = Tensor.zeros([1, rows, hidden], 'fp8e4m3', device)
      const scales = Tensor.zeros([1, rows, groups], 'f32', device)
      const counts = Tensor.from([kind === 'none' ? 0 : rows], [1], 'i32')
      if (kind === 'fails') stream.fail('ERR_MOE_EP_CAPACITY', 'full')
      siluMulQuantize(x, { ...options, stream, counts, out: { values, scales } })
      const awaited = stream.synchronize()
      if (kind === 'fails') await expect(awaited).rejects.toMatchObject({ code: 'ERR_MOE_EP_CAPACITY' })
      else await awaited
      const written = kind === 'all'
      expect(differing(await bytesOf(values), written ? rowValues : new Uint8Array(rowValues.length))).toBe(0)
      expect(differing(await bytesOf(scales), written ? rowScales : new Uint8Array(rowScales.length))).toBe(0)
    }
    await stream.close()
  })

  test("'vllm-contiguous' is siluMul, then quantizePerTokenGroup; the others stay close to it", async () => {
    const [rows, hidden] = [16, 512]
    const numbers = Array.from({ length: rows * 2 * hidden }, (_, i) => 4 * Math.sin(i * 0.37) * (1 + (i % 11)))
    const x = Tensor.from(numbers, [rows, 2 * hidden], 'bf16')
    for (const clampLimit of [undefined, 7, 10]) {
      const limit = limitOf(clampLimit)
      const fused = siluMulQuantize(x, limit)
      const apart = quantizePerTokenGroup(siluMul(x, limit))
      expect(await bytesOf(fused.values)).toEqual(await bytesOf(apart.values))
      expect(await bytesOf(fused.scales)).toEqual(await bytesOf(apart.scales))
      const plain = dequantizePerTokenGroup(fused.values, fused.scales, { dtype: 'f32' })
      for (const numerics of ['vllm-masked', 'f32'] as const) {
        const other = siluMulQuantize(x, { ...limit, numerics })
        const back = dequantizePerTokenGroup(other.values, other.scales, { dtype: 'f32' })
        const exact = await plain.readNumbers()
        const largest = Math.max(...exact.map(Math.abs))
        const read = await back.readNumbers()
        read.forEach((value, i) => {
          expect(Math.abs(value - exact[i]!)).toBeLessThanOrEqual(0.14 * Math.abs(exact[i]!) + largest * 2 ** -9)
        })
      }
    }
  })

  test("'f32' multiplies by 1 / 448 where 'vllm-contiguous' divides by 448, and does not round to bf16", async () => {
    // silu(64) * 3 / 64 is 3; silu(1) is 0.731..., of which bf16 keeps 0.73046875.
    const x = Tensor.from([64, 1, 3 / 64, 1], [1, 4], 'bf16')
    const [f32, contiguous] = [siluMulQuantize(x, { numerics: 'f32' }), siluMulQuantize(x)]
    expect([(await f32.scales.read())[0], (await contiguous.scales.read())[0]]).toEqual([
      0.0066964291036129, 0.0066964286379516125,
    ])
    const silu = siluMul(x)
    const alone = siluMulQuantize(x, { numerics: 'f32', groupSize: 1 })
    expect((await silu.readNumbers())[1]).toBe(0.73046875)
    expect(Number((await alone.scales.read())[1]) * 448).toBeCloseTo(1 / (1 + Math.exp(-1)), 6)
  })

  test.each([
    ['vllm-contiguous', 2 ** -33],
    ['f32', 2 ** -42],
  ] as const)('zeros with powers of two (%s)', async (numerics, scale) => {
    const { scales } = siluMulQuantize(Tensor.zeros([1, 256], 'bf16'), { numerics, scaleFormat: 'ue8m0' })
    expect((await scales.read())[0]).toBe(scale)
  })

  // silu(64) is 64, so that the products are what is written; bf16(1 / 448) is 73 / 32768.
  test.each([
    ['a scale and a product that are rounded', [320, -100, 97], 'f32', 182 / 256, [0x7e, 0xf1, 0x70]],
    ['a power of two', [320, -100, 97], 'ue8m0', 1, [0x7a, 0xec, 0x6c]],
    ['a power below the scale of 129, for its logarithm is rounded to 7', [57856], 'ue8m0', 128, [0x7e]],
    ['zeros', [0, -0], 'f32', 251 * 2 ** -50, [0, 0x80]],
    ['zeros with a power of two', [0, -0], 'ue8m0', 2 ** -42, [0, 0x80]],
  ] as const)("'vllm-masked' on paper: %s", async (_, products, scaleFormat, scale, codes) => {
    const halves = [...products.map(() => 64), ...products.map((product) => product / 64)]
    const x = Tensor.from(halves, [1, halves.length], 'bf16')
    const { values, scales } = siluMulQuantize(x, { numerics: 'vllm-masked', scaleFormat })
    expect((await scales.read())[0]).toBe(scale)
    expect([...(await bytesOf(values))]).toEqual([...codes])
  })
})

describe('refused', () => {
  const x = Tensor.zeros([2, 8], 'bf16')
  const batched = Tensor.zeros([2, 2, 8], 'bf16')
  test.each<readonly [string, () => unknown, string]>([
    ['an odd width', () => siluMul(Tensor.zeros([2, 7], 'bf16')), 'x'],
    ['a vector', () => siluMul(Tensor.zeros([8], 'bf16')), 'x'],
    ['fp8', () => siluMul(Tensor.zeros([2, 8], 'fp8e4m3')), 'x'],
    ['a limit of zero', () => siluMul(x, { clampLimit: 0 }), 'clampLimit'],
    ['a NaN limit', () => siluMul(x, { clampLimit: NaN }), 'clampLimit'],
    ['counts without a batch', () => siluMul(x, { counts: Tensor.zeros([2], 'i32') }), 'counts'],
    ['counts of another batch', () => siluMul(batched, { counts: Tensor.zeros([3], 'i32') }), 'counts'],
    ['i64 counts', () => siluMul(batched, { counts: Tensor.zeros([2], 'i64') }), 'counts'],
    ['out of another shape', () => siluMul(x, { out: x }), 'out'],
    [
      'out over x',
      () => siluMul(batched, { out: new Tensor({ memory: batched.memory, dtype: 'bf16', shape: [2, 2, 4] }) }),
      'out',
    ],
    ['unknown numerics', () => siluMulQuantize(x, { numerics: 'exact' as never }), 'numerics'],
    ['masked numerics of f16', () => siluMulQuantize(Tensor.zeros([2, 8], 'f16'), { numerics: 'vllm-masked' }), 'x'],
    ['groups of 0', () => siluMulQuantize(x, { groupSize: 0 }), 'groupSize'],
    [
      'out.scales of one matrix for a batch',
      () =>
        siluMulQuantize(batched, {
          out: { values: Tensor.zeros([2, 2, 4], 'fp8e4m3'), scales: Tensor.zeros([4, 1], 'f32') },
        }),
      'out.scales',
    ],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
