import { copyTensor, Event, encode, Graph, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { dequantizePerTokenGroup, type GroupNumerics, quantizePerTokenGroup, reference } from '../src/index.js'
import { bytesOf, device, stream } from './support.js'

const wordsOf = (floats: Float32Array): Uint32Array => new Uint32Array(floats.buffer, floats.byteOffset, floats.length)

/** Quantises on the device and compares with the reference, byte for byte. */
async function checkQuantized(x: Tensor, groupSize: number, numerics: GroupNumerics): Promise<void> {
  const { values, scales } = quantizePerTokenGroup(x, { groupSize, numerics })
  const numbers = (await x.readNumbers()) as Float32Array
  const expected = reference.quantizePerTokenGroup(numbers, { hidden: x.shape[1]!, groupSize, numerics })
  expect(Buffer.compare((await values.read()) as Uint8Array, expected.values)).toBe(0)
  expect(wordsOf((await scales.read()) as Float32Array)).toEqual(wordsOf(expected.scales))
}

const numericsKinds = ['vllm', 'deepep'] as const

/** Bit patterns that meet every branch: any bits, and the special ones often. */
const words16 = fc.oneof(
  fc.integer({ min: 0, max: 0xffff }),
  // zeros, smallest subnormals, one, infinities, NaN, largest finite bf16 and f16
  fc.constantFrom(0, 0x8000, 1, 0x8001, 0x3f80, 0x7f80, 0xff80, 0x7fff, 0xffc1, 0x7f7f, 0x7c00, 0xfc00, 0x7bff),
  // ordinary numbers, so that many groups have no special value
  fc.integer({ min: 0x3800, max: 0x4400 }),
)
const words32 = fc.oneof(
  fc.integer({ min: 0, max: 0xffffffff }),
  fc.constantFrom(0, 0x80000000, 1, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00001, 0xffffffff, 0x00800000),
  fc.integer({ min: 0x38000000, max: 0x44000000 }),
)
const shapes = fc.record({
  rows: fc.integer({ min: 0, max: 4 }),
  hidden: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.constantFrom(128, 296, 512, 1288)),
  groupSize: fc.oneof(fc.integer({ min: 1, max: 320 }), fc.constantFrom(16, 32, 128, 128, 1024)),
  numerics: fc.constantFrom(...numericsKinds),
  kind: fc.constantFrom('ordinary' as const, 'hostile' as const),
})

describe('quantizePerTokenGroup', () => {
  test.each(['bf16', 'f16', 'f32'] as const)('equals the reference on arbitrary %s bits', async (dtype) => {
    const word = dtype === 'f32' ? words32 : words16
    const ordinary =
      dtype === 'f32' ? fc.integer({ min: 0x30000000, max: 0x45000000 }) : fc.integer({ min: 0x3000, max: 0x4500 })
    const inputs = shapes.chain(({ rows, hidden, kind, ...rest }) =>
      fc.record({
        rows: fc.constant(rows),
        hidden: fc.constant(hidden),
        rest: fc.constant(rest),
        bits: fc.array(kind === 'hostile' ? word : ordinary, { minLength: rows * hidden, maxLength: rows * hidden }),
      }),
    )
    await fc.assert(
      fc.asyncProperty(inputs, async ({ rows, hidden, rest, bits }) => {
        const stored = dtype === 'f32' ? new Float32Array(Uint32Array.from(bits).buffer) : Uint16Array.from(bits)
        await checkQuantized(Tensor.copyOf(stored, [rows, hidden], dtype), rest.groupSize, rest.numerics)
      }),
      { numRuns: 200 },
    )
  })

  test.each(numericsKinds)('equals the reference for every bf16 value under several scales (%s)', async (numerics) => {
    // Each row: one value that sets the amax, then all finite magnitudes below it, both signs.
    for (const amax of [0x0001, 0x1234, 0x2edc, 0x3f80, 0x43e0, 0x4440, 0x4555, 0x717f, 0x7180, 0x7f7f]) {
      const row = Uint16Array.from({ length: 2 * (amax + 1) }, (_, i) => (i >> 1) | ((i & 1) << 15))
      await checkQuantized(Tensor.copyOf(row, [1, row.length], 'bf16'), row.length, numerics)
    }
  })

  test('rounds as the division does for every pair of bf16 significands, in every binade of the result', async () => {
    // Row a: amax with significand a; then all significands in the binades that e4m3 can tell apart.
    const exponents = 20
    const hidden = 1 + exponents * 128
    const stored = new Uint16Array(128 * hidden)
    for (let a = 0; a < 128; a++) {
      const amax = (130 << 7) | a
      const row = stored.subarray(a * hidden, (a + 1) * hidden)
      row.forEach((_, i) => {
        row[i] = Math.min(amax, ((130 - Math.floor((i - 1) / 128)) << 7) | ((i - 1) & 127))
      })
      row[0] = amax
    }
    await checkQuantized(Tensor.copyOf(stored, [128, hidden], 'bf16'), hidden, 'vllm')
  })

  test('rounds as the division does for every pair of f16 significands', async () => {
    const amaxes = Array.from({ length: 1024 }, (_, i) => 0x5000 | i)
    const hidden = 2 * 1024
    const stored = Uint16Array.from({ length: amaxes.length * hidden }, (_, i) => {
      const column = i % hidden
      const amax = amaxes[Math.floor(i / hidden)]!
      return column === 0 ? amax : Math.min(amax, 0x4c00 + column)
    })
    await checkQuantized(Tensor.copyOf(stored, [amaxes.length, hidden], 'f16'), hidden, 'vllm')
  })

  test('rounds as the division does where quotients of f32 lie next to where codes change', async () => {
    // So near that the bits behind f32 decide they are where the scale's significand is next to a multiple of 2^20.
    const f32 = (bits: number): number => new Float32Array(Uint32Array.of(bits).buffer)[0]!
    const bitsOf = (value: number): number => new Uint32Array(Float32Array.of(value).buffer)[0]!
    const rows: { amax: number; scale: number }[] = []
    for (let part = 8; part <= 16; part++) {
      for (let beside = -16; beside <= 16; beside++) {
        const scale = f32(bitsOf(1) + ((part - 8) << 20) + beside)
        const near = bitsOf(scale * 448)
        const amax = [-1, 0, 1].map((step) => f32(near + step)).find((value) => Math.fround(value / 448) === scale)
        if (amax !== undefined) rows.push({ amax, scale }) // not all f32 are an amax's scale
      }
    }
    expect(rows.length).toBeGreaterThan(200)
    const quotients: number[] = []
    for (let exponent = -10; exponent <= 8; exponent++) {
      // Between normal numbers, and those that are subnormal: 16 to 31 of 5 bits.
      for (let fifth = 16; fifth < 32; fifth++) {
        for (const half of [-1, 1]) quotients.push((fifth / 16 + half * 2 ** -24) * 2 ** exponent)
      }
    }
    const steps = [-2, -1, 0, 1, 2]
    const hidden = Math.ceil((1 + quotients.length * steps.length) / 4) * 4
    const stored = new Float32Array(rows.length * hidden)
    for (const [r, { amax, scale }] of rows.entries()) {
      const row = stored.subarray(r * hidden, (r + 1) * hidden)
      row[0] = amax
      for (const [q, quotient] of quotients.entries()) {
        for (const [s, step] of steps.entries()) {
          row[1 + q * steps.length + s] = Math.min(amax, f32(bitsOf(quotient * scale) + step))
        }
      }
    }
    const x = Tensor.copyOf(stored, [rows.length, hidden], 'f32')
    await checkQuantized(x, hidden, 'vllm')
    // By groups of 128, each with the row's amax: the kernel of short groups.
    const groups = Math.ceil(hidden / 127)
    const short = new Float32Array(rows.length * groups * 128)
    for (const [r, { amax }] of rows.entries()) {
      for (let i = 0; i < groups * 128; i++) {
        const column = Math.floor(i / 128) * 127 + (i % 128) - 1
        short[r * groups * 128 + i] = i % 128 === 0 || column >= hidden ? amax : stored[r * hidden + column]!
      }
    }
    await checkQuantized(Tensor.copyOf(short, [rows.length, groups * 128], 'f32'), 128, 'vllm')
  })

  test.each([
    ['the worked value', 'vllm', [672, 336, -1.5], 1.5, [0x7e, 0x76, 0xb8]],
    ['448', 'deepep', [448, 1, -448], 1, [0x7e, 0x38, 0xfe]],
    ['zeros, keeping their sign', 'vllm', [0, -0], Math.fround(Math.fround(1e-10) / 448), [0x00, 0x80]],
    [
      'zeros with the higher floor',
      'deepep',
      [0, -0],
      Math.fround(Math.fround(1e-4) * Math.fround(1 / 448)),
      [0x00, 0x80],
    ],
    [
      'ties, to even',
      'vllm',
      [448, 17, 19, 1.0625, 0.0009765625, 0.0029296875],
      1,
      [0x7e, 0x58, 0x5a, 0x38, 0x00, 0x02],
    ],
    ['a NaN beside numbers', 'vllm', [NaN, 448, 2], 1, [0x7f, 0x7e, 0x40]],
    ['only NaN', 'deepep', [NaN, NaN], Math.fround(Math.fround(1e-4) * Math.fround(1 / 448)), [0x7f, 0x7f]],
    [
      'infinities beside numbers',
      'vllm',
      [Infinity, -Infinity, 5, -5, NaN, 0, -0],
      Infinity,
      [0x7f, 0x7f, 0, 0x80, 0x7f, 0, 0x80],
    ],
    ['infinities beside numbers', 'deepep', [-Infinity, 5, -5], Infinity, [0x7f, 0, 0x80]],
  ] as const)('quantises %s (%s)', async (_, numerics, numbers, scale, codes) => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const { values, scales } = quantizePerTokenGroup(Tensor.from(numbers, [1, numbers.length], dtype), { numerics })
      expect((await scales.read())[0]).toBe(scale)
      expect([...((await values.read()) as Uint8Array)]).toEqual([...codes])
    }
  })

  test('differs between the two numerics where the spec says so', async () => {
    const numbers = Array.from({ length: 4096 }, (_, i) => Math.fround(3 * Math.sin(i + 1)))
    const x = Tensor.from(numbers, [32, 128], 'f32')
    const vllm = quantizePerTokenGroup(x)
    const deepep = quantizePerTokenGroup(x, { numerics: 'deepep' })
    expect(await bytesOf(vllm.scales)).not.toEqual(await bytesOf(deepep.scales))
    const deepepCodes = await bytesOf(deepep.values)
    const steps = [...(await bytesOf(vllm.values))].map((code, i) => Math.abs(code - deepepCodes[i]!))
    expect(Math.max(...steps)).toBeLessThanOrEqual(1)
  })

  test('does not depend on the number of threads, nor on the alignment of rows', async () => {
    const [rows, hidden] = [97, 1001]
    const bits = Uint16Array.from({ length: rows * hidden }, (_, i) => (Math.imul(i + 1, 2654435761) >>> 17) & 0xbfff)
    const results: Uint8Array[][] = []
    for (const [threads, skip] of [
      [1, 0],
      [2, 0],
      [5, 1],
    ] as const) {
      await using other = device.createStream({ threads })
      const { memory } = Tensor.copyOf(
        Uint16Array.from([...Array(skip).fill(0), ...bits]),
        [skip + bits.length],
        'bf16',
      )
      const x = new Tensor({ memory, dtype: 'bf16', shape: [rows, hidden], byteOffset: 2 * skip })
      const { values, scales } = quantizePerTokenGroup(x, { stream: other })
      await other.synchronize()
      results.push([await bytesOf(values), await bytesOf(scales)])
    }
    expect(results[1]).toEqual(results[0])
    expect(results[2]).toEqual(results[0])
  })
})

describe('dequantizePerTokenGroup', () => {
  test.each(['bf16', 'f16', 'f32'] as const)('equals the reference to %s, NaN bits too', async (dtype) => {
    const inputs = shapes.chain(({ rows, hidden, groupSize }) => {
      const groups = rows * Math.ceil(hidden / groupSize)
      return fc.record({
        rows: fc.constant(rows),
        hidden: fc.constant(hidden),
        groupSize: fc.constant(groupSize),
        codes: fc.uint8Array({ minLength: rows * hidden, maxLength: rows * hidden }),
        scales: fc.array(words32, { minLength: groups, maxLength: groups }),
      })
    })
    await fc.assert(
      fc.asyncProperty(inputs, async ({ rows, hidden, groupSize, codes, scales }) => {
        const floats = new Float32Array(Uint32Array.from(scales).buffer)
        const groups = Math.ceil(hidden / groupSize)
        const out = dequantizePerTokenGroup(
          Tensor.copyOf(codes, [rows, hidden], 'fp8e4m3'),
          Tensor.copyOf(floats, [rows, groups], 'f32'),
          { groupSize, dtype },
        )
        const expected = reference.dequantizePerTokenGroup(codes, floats, { hidden, groupSize, dtype })
        const bytes = new Uint8Array(expected.buffer as ArrayBuffer, expected.byteOffset, expected.byteLength)
        expect(Buffer.compare(await bytesOf(out), bytes)).toBe(0)
      }),
      { numRuns: 200 },
    )
  })

  test.each(['bf16', 'f16', 'f32'] as const)('gives every code under every kind of scale (%s)', async (dtype) => {
    // Rows of all codes: powers of two that reach each format's subnormals, its overflow and the middle, and uneven scales.
    const scales = Float32Array.from([
      0,
      -0,
      1,
      -3.3,
      2 ** -149,
      2 ** -133,
      2 ** -24,
      1e-7,
      77.77,
      146.3,
      2 ** 119,
      3e38,
      Infinity,
      NaN,
    ])
    const codes = Uint8Array.from({ length: scales.length * 256 }, (_, i) => i)
    const values = Tensor.copyOf(codes, [scales.length, 256], 'fp8e4m3')
    const out = dequantizePerTokenGroup(values, Tensor.copyOf(scales, [scales.length, 1], 'f32'), {
      groupSize: 256,
      dtype,
    })
    const expected = reference.dequantizePerTokenGroup(codes, scales, { hidden: 256, groupSize: 256, dtype })
    expect(await bytesOf(out)).toEqual(
      new Uint8Array(expected.buffer as ArrayBuffer, expected.byteOffset, expected.byteLength),
    )
  })

  test('gives back what was quantised, within half a step of e4m3; a group with an infinity becomes NaN', async () => {
    const numbers = Array.from({ length: 3 * 300 }, (_, i) => Math.sin(i) * 10 ** ((i % 7) - 3))
    numbers[300] = -Infinity
    const { values, scales } = quantizePerTokenGroup(Tensor.from(numbers, [3, 300], 'bf16'))
    const back = dequantizePerTokenGroup(values, scales)
    expect(back.dtype).toBe('bf16')
    const numbersBack = await back.readNumbers()
    const read = await scales.read()
    numbers.forEach((x, i) => {
      const scale = read[Math.floor(i / 300) * 3 + Math.floor((i % 300) / 128)] as number
      if (i >= 300 && i < 428) expect(numbersBack[i]).toBeNaN()
      else expect(Math.abs(numbersBack[i]! - x)).toBeLessThanOrEqual(Math.max(Math.abs(x) * 0.07, scale * 2 ** -9))
    })
  })
})

describe('where results go', () => {
  test('into `out`, also each time a graph is replayed', async () => {
    await using own = device.createStream({ threads: 2 })
    const x = Tensor.from([1, 2, 3, 448], [2, 2], 'bf16')
    const out = { values: Tensor.zeros([2, 2], 'fp8e4m3'), scales: Tensor.zeros([2, 1], 'f32') }
    const back = Tensor.zeros([2, 2], 'f32')
    const graph = Graph.capture(own, () => {
      expect(quantizePerTokenGroup(x, { stream: own, out })).toEqual(out)
      expect(dequantizePerTokenGroup(out.values, out.scales, { stream: own, out: back })).toBe(back)
    })
    for (const numbers of [
      [448, 224, 7, 1.75],
      [0, 448, -448, 14],
    ]) {
      copyTensor(Tensor.wrap(encode('bf16', numbers), [2, 2], 'bf16'), x, { stream: own })
      graph.launch(own)
      expect([...(await back.readNumbers({ stream: own }))]).toEqual(numbers)
    }
  })

  test('after the work of the stream that it was enqueued on', async () => {
    await using own = device.createStream()
    const done = new Event(device)
    const { values } = quantizePerTokenGroup(Tensor.from([448], [1, 1], 'f32'), { stream: own })
    own.record(done)
    stream.wait(done)
    const back = dequantizePerTokenGroup(values, Tensor.from([2], [1, 1], 'f32'), { dtype: 'f32' })
    expect([...(await back.readNumbers())]).toEqual([896])
  })

  test('nowhere for no rows', async () => {
    const { values, scales } = quantizePerTokenGroup(Tensor.zeros([0, 300], 'bf16'))
    const back = dequantizePerTokenGroup(values, scales)
    expect([values.shape, scales.shape, back.shape]).toEqual([
      [0, 300],
      [0, 3],
      [0, 300],
    ])
  })
})

describe('refused before anything is enqueued', () => {
  const x = (): Tensor => Tensor.zeros([2, 8], 'bf16')
  const values = (): Tensor => Tensor.zeros([2, 8], 'fp8e4m3')
  const scales = (): Tensor => Tensor.zeros([2, 1], 'f32')
  const both = Tensor.zeros([4, 8], 'fp8e4m3')

  test.each<readonly [string, () => unknown, string]>([
    ['an integer matrix', () => quantizePerTokenGroup(Tensor.zeros([2, 8], 'i32')), 'x'],
    ['a vector', () => quantizePerTokenGroup(Tensor.zeros([8], 'bf16')), 'x'],
    ['rows of nothing', () => quantizePerTokenGroup(Tensor.zeros([2, 0], 'bf16')), 'x'],
    ['no tensor', () => quantizePerTokenGroup([1, 2] as never), 'x'],
    ['groups of 0', () => quantizePerTokenGroup(x(), { groupSize: 0 }), 'groupSize'],
    ['groups of 1.5', () => quantizePerTokenGroup(x(), { groupSize: 1.5 }), 'groupSize'],
    ['unknown numerics', () => quantizePerTokenGroup(x(), { numerics: 'other' as never }), 'numerics'],
    [
      'out.values of another shape',
      () => quantizePerTokenGroup(x(), { out: { values: Tensor.zeros([2, 7], 'fp8e4m3'), scales: scales() } }),
      'out.values',
    ],
    [
      'out.scales for other groups',
      () => quantizePerTokenGroup(x(), { groupSize: 4, out: { values: values(), scales: scales() } }),
      'out.scales',
    ],
    [
      'out over x',
      () =>
        quantizePerTokenGroup(new Tensor({ memory: both.memory, dtype: 'bf16', shape: [2, 8] }), {
          out: { values: both.slice(0, 2), scales: scales() },
        }),
      'out.values',
    ],
    ['e5m2 values', () => dequantizePerTokenGroup(Tensor.zeros([2, 8], 'fp8e5m2'), scales()), 'values'],
    ['values without columns', () => dequantizePerTokenGroup(Tensor.zeros([2, 0], 'fp8e4m3'), scales()), 'values'],
    ['scales of too many groups', () => dequantizePerTokenGroup(values(), Tensor.zeros([2, 2], 'f32')), 'scales'],
    ['bf16 scales', () => dequantizePerTokenGroup(values(), Tensor.zeros([2, 1], 'bf16')), 'scales'],
    ['an integer dtype', () => dequantizePerTokenGroup(values(), scales(), { dtype: 'i32' as never }), 'dtype'],
    [
      'out of an integer dtype',
      () => dequantizePerTokenGroup(values(), scales(), { out: Tensor.zeros([2, 8], 'i32') }),
      'out',
    ],
    [
      'out of another dtype than asked',
      () => dequantizePerTokenGroup(values(), scales(), { dtype: 'f32', out: x() }),
      'out',
    ],
    [
      'out over values',
      () =>
        dequantizePerTokenGroup(both.slice(1, 3), scales(), {
          out: new Tensor({ memory: both.memory, dtype: 'bf16', shape: [2, 8] }),
        }),
      'out',
    ],
  ])('%s', (_, call, argument) => {
    expect(call).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }))
  })
})
