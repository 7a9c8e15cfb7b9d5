import { describe, expect, test } from 'vitest'
import * as core from '../src/index.js'

const word = new Uint32Array(1)
const float = new Float32Array(word.buffer)
const f32Of = (bits: number): number => {
  word[0] = bits
  return float[0]!
}
/** The f32 one step away from a finite positive number. */
const step = (value: number, steps: number): number => {
  float[0] = value
  return f32Of(word[0]! + steps)
}

interface Format {
  readonly name: string
  readonly encode: (value: number) => number
  readonly decode: (code: number) => number
  readonly exponentBits: number
  readonly mantissaBits: number
  readonly largestCode: number
  /** Code of magnitudes that are too large: infinity, or the largest finite number. */
  readonly overflowCode: number
  readonly nanCode: number
}

const formats: readonly Format[] = [
  {
    name: 'f16',
    encode: core.f32ToF16,
    decode: core.f16ToF32,
    exponentBits: 5,
    mantissaBits: 10,
    largestCode: 0x7bff,
    overflowCode: 0x7c00,
    nanCode: 0x7fff,
  },
  {
    name: 'bf16',
    encode: core.f32ToBf16,
    decode: core.bf16ToF32,
    exponentBits: 8,
    mantissaBits: 7,
    largestCode: 0x7f7f,
    overflowCode: 0x7f80,
    nanCode: 0x7fff,
  },
  {
    name: 'fp8e4m3',
    encode: core.f32ToFp8E4m3,
    decode: core.fp8E4m3ToF32,
    exponentBits: 4,
    mantissaBits: 3,
    largestCode: 0x7e,
    overflowCode: 0x7e,
    nanCode: 0x7f,
  },
  {
    name: 'fp8e5m2',
    encode: core.f32ToFp8E5m2,
    decode: core.fp8E5m2ToF32,
    exponentBits: 5,
    mantissaBits: 2,
    largestCode: 0x7b,
    overflowCode: 0x7b,
    nanCode: 0x7f,
  },
  {
    name: 'fp4e2m1',
    encode: core.f32ToFp4E2m1,
    decode: core.fp4E2m1ToF32,
    exponentBits: 2,
    mantissaBits: 1,
    largestCode: 0x7,
    overflowCode: 0x7,
    nanCode: 0x7,
  },
]

/** The value of a positive finite code, straight from the meaning of its two fields. */
function valueOf(code: number, { exponentBits, mantissaBits }: Format): number {
  const exponent = Math.floor(code / 2 ** mantissaBits)
  const fraction = (code % 2 ** mantissaBits) / 2 ** mantissaBits
  const bias = 2 ** (exponentBits - 1) - 1
  return exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias)
}

/** Every place where a result is not what it should be, at most a few: one expectation over all codes keeps tests quick. */
function mismatches(cases: Iterable<readonly [input: number, actual: number, expected: number]>): string[] {
  const found: string[] = []
  for (const [input, actual, expected] of cases) {
    if (!Object.is(actual, expected) && found.push(`${input}: ${actual}, expected ${expected}`) === 5) break
  }
  return found
}

describe.each(formats)('$name', (format) => {
  const { encode, decode, exponentBits, mantissaBits, largestCode, overflowCode, nanCode } = format
  const sign = 2 ** (exponentBits + mantissaBits)
  const codes = Array.from({ length: largestCode + 1 }, (_, code) => code)

  test('every finite code has the value that its fields say, and encodes to itself', () => {
    expect(mismatches(codes.map((code) => [code, decode(code), valueOf(code, format)]))).toEqual([])
    expect(mismatches(codes.map((code) => [code, decode(code | sign), -valueOf(code, format)]))).toEqual([])
    expect(mismatches(codes.map((code) => [code, encode(decode(code)), code]))).toEqual([])
    expect(mismatches(codes.map((code) => [code, encode(decode(code | sign)), code | sign]))).toEqual([])
  })

  test('midpoints tie to the even code, and their neighbours go to the nearer one', () => {
    function* cases(): Generator<readonly [number, number, number]> {
      // The midpoint above the largest code is that to the next number, were the format to go on.
      for (const code of codes) {
        const middle = (valueOf(code, format) + valueOf(code + 1, format)) / 2
        const up = code === largestCode ? overflowCode : code + 1
        const even = code % 2 === 0 ? code : up
        yield [middle, encode(middle), even]
        yield [middle, encode(-middle), even | sign]
        const below = step(middle, -1)
        const above = step(middle, 1)
        yield [below, encode(below), code]
        yield [above, encode(above), up]
        yield [-above, encode(-above), up | sign]
      }
    }
    expect(mismatches(cases())).toEqual([])
  })

  test('overflow, infinities and NaN', () => {
    for (const [value, code] of [
      [f32Of(0x7f7fffff), overflowCode],
      [1e300, overflowCode],
      [Infinity, overflowCode],
    ] as const) {
      expect(encode(value)).toBe(code)
      expect(encode(-value)).toBe(code | sign)
    }
    expect(encode(NaN)).toBe(nanCode)
    expect(encode(f32Of(1))).toBe(0)
    expect(encode(-f32Of(1))).toBe(sign)
  })
})

test('codes past the largest finite one are infinities and NaN where the format has them', () => {
  for (const sign of [0, 1]) {
    const infinity = sign === 1 ? -Infinity : Infinity
    expect([core.f16ToF32(0x7c00 | (sign << 15)), core.bf16ToF32(0x7f80 | (sign << 15))]).toEqual([infinity, infinity])
    expect(core.fp8E5m2ToF32(0x7c | (sign << 7))).toBe(infinity)
    for (let code = 0x7c01; code <= 0x7fff; code++) expect(core.f16ToF32(code | (sign << 15))).toBeNaN()
    for (let code = 0x7f81; code <= 0x7fff; code++) expect(core.bf16ToF32(code | (sign << 15))).toBeNaN()
    for (let code = 0x7d; code <= 0x7f; code++) expect(core.fp8E5m2ToF32(code | (sign << 7))).toBeNaN()
    expect(core.fp8E4m3ToF32(0x7f | (sign << 7))).toBeNaN()
  }
})

test('numbers are rounded to f32 first', () => {
  // Just above the middle between 1 and the next e4m3 number, but less than half an f32 step above.
  expect(core.f32ToFp8E4m3(1.0625 + 2 ** -30)).toBe(0x38)
  expect(core.f32ToF16(1 + 2 ** -11 + 2 ** -30)).toBe(0x3c00)
  expect(core.f32ToBf16(1 + 2 ** -8 + 2 ** -30)).toBe(0x3f80)
})

test('f32 bits: exact, signed zeros, canonical NaN', () => {
  const patterns = [0, 0x80000000, 1, 0x3f800000, 0xbf800000, 0x7f7fffff, 0x7f800000, 0xff800000]
  for (const bits of patterns) expect(core.f32ToBits(core.bitsToF32(bits))).toBe(bits)
  expect(core.f32ToBits(NaN)).toBe(0x7fffffff)
  expect(core.f32ToBits(core.bitsToF32(0xffc00001))).toBe(0x7fffffff)
})

describe('e8m0', () => {
  test('every byte is a power of two and encodes to itself; what lies above rounds up', () => {
    for (let byte = 0; byte <= 254; byte++) {
      const value = core.e8m0ToF32(byte)
      expect(value).toBe(2 ** (byte - 127))
      expect(core.f32ToE8m0(value)).toBe(byte)
      expect(core.f32ToE8m0(step(value, 1))).toBe(Math.min(byte + 1, 254))
      expect(core.f32ToE8m0(step(value, -1))).toBe(byte)
    }
  })

  test('zeros, tiny numbers, overflow, negatives and NaN', () => {
    expect([0, -0, 2 ** -149].map(core.f32ToE8m0)).toEqual([0, 0, 0])
    expect([f32Of(0x7f7fffff), Infinity].map(core.f32ToE8m0)).toEqual([254, 254])
    expect([-1, -(2 ** -149), -Infinity, NaN].map(core.f32ToE8m0)).toEqual([255, 255, 255, 255])
    expect(core.e8m0ToF32(255)).toBeNaN()
  })
})

describe('arrays', () => {
  test('every stored code of the small formats decodes as the scalar function does, and back', () => {
    const scalars = {
      f16: core.f16ToF32,
      bf16: core.bf16ToF32,
      fp8e4m3: core.fp8E4m3ToF32,
      fp8e5m2: core.fp8E5m2ToF32,
      e8m0: core.e8m0ToF32,
    } as const
    for (const [dtype, decodeOne] of Object.entries(scalars) as [keyof typeof scalars, (code: number) => number][]) {
      const { bits, storage: Storage } = core.dtypes[dtype]
      const stored = new Storage(2 ** bits)
      for (let code = 0; code < stored.length; code++) stored[code] = code
      const numbers = core.decode(dtype, stored)
      expect(mismatches(Array.from(numbers, (value, code) => [code, value, decodeOne(code)]))).toEqual([])
      const back = core.encode(dtype, numbers)
      // An e5m2 infinity saturates: it is the one number that encoding does not give back.
      const kept = (code: number): boolean =>
        !Number.isNaN(numbers[code]) && !(dtype === 'fp8e5m2' && !Number.isFinite(numbers[code]))
      expect(mismatches(Array.from(back as Uint8Array, (code, i) => [i, code, kept(i) ? i : code]))).toEqual([])
    }
  })

  test('fp4 packs the even element into the low half', () => {
    const all = Float32Array.from({ length: 16 }, (_, code) => core.fp4E2m1ToF32(code))
    const packed = core.encode('fp4e2m1', all)
    expect([...packed]).toEqual(Array.from({ length: 8 }, (_, i) => 2 * i + (2 * i + 1) * 16))
    expect(core.decode('fp4e2m1', packed)).toEqual(all)
    expect(() => core.encode('fp4e2m1', [1, 2, 3])).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })

  test('bulk bf16 equals the scalar functions on hostile bits', () => {
    const bits = Uint32Array.from(
      { length: 65536 * 4 },
      (_, i) => ((i >>> 2) << 16) | [0, 0x7fff, 0x8000, 0x8001][i & 3]!,
    )
    const floats = new Float32Array(bits.buffer)
    const bulk = core.f32ToBf16Array(floats)
    expect(mismatches(Array.from(floats, (value, i) => [bits[i]!, bulk[i]!, core.f32ToBf16(value)]))).toEqual([])
    const widened = core.bf16ToF32Array(bulk)
    expect(mismatches(Array.from(widened, (value, i) => [i, value, core.bf16ToF32(bulk[i]!)]))).toEqual([])
  })

  test('f32 keeps every number, and stores the canonical NaN', () => {
    const stored = core.encode('f32', [1.5, -0, NaN, Infinity]) as Float32Array
    expect([...new Uint32Array(stored.buffer)]).toEqual([0x3fc00000, 0x80000000, 0x7fffffff, 0x7f800000])
  })

  test('integers and booleans: whole numbers in range, anything else is refused', () => {
    expect([...core.encode('i32', [-(2 ** 31), 2 ** 31 - 1, -0])]).toEqual([-(2 ** 31), 2 ** 31 - 1, 0])
    expect([...core.encode('i64', [-1, 2 ** 53, 2n ** 63n - 1n])]).toEqual([-1n, 2n ** 53n, 2n ** 63n - 1n])
    expect([...core.encode('u8', [0, 255])]).toEqual([0, 255])
    expect([...core.encode('bool', [0, 1, 7])]).toEqual([0, 1, 1])
    expect([...core.decode('i64', BigInt64Array.from([-1n, 5n]))]).toEqual([-1, 5])
    const bad = [
      ['i32', 2 ** 31],
      ['i32', 1.5],
      ['i64', 1.5],
      ['i64', NaN],
      ['i64', 2n ** 63n],
      ['u8', 256],
      ['u8', -1],
    ] as const
    for (const [dtype, value] of bad) {
      expect(() => core.encode(dtype, [0, value]), `${dtype} ${value}`).toThrow(
        expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
      )
    }
  })
})
