import { byteLengthOf, type DType, dtypes, type StorageArray } from './dtype.js'
import { argumentError } from './error.js'
import {
  bf16ToF32,
  canonicalNaN,
  e8m0ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToE8m0,
  f32ToF16,
  f32ToFp4E2m1,
  f32ToFp8E4m3,
  f32ToFp8E5m2,
  fp4E2m1ToF32,
  fp8E4m3ToF32,
  fp8E5m2ToF32,
} from './float-formats.js'

const encoders = {
  f16: f32ToF16,
  bf16: f32ToBf16,
  fp8e4m3: f32ToFp8E4m3,
  fp8e5m2: f32ToFp8E5m2,
  e8m0: f32ToE8m0,
} as const

const decoders = {
  f16: f16ToF32,
  bf16: bf16ToF32,
  fp8e4m3: fp8E4m3ToF32,
  fp8e5m2: fp8E5m2ToF32,
  e8m0: e8m0ToF32,
} as const

const tables = new Map<keyof typeof decoders, Float32Array>()

/** All values of a format, built at first use: a look-up is far quicker than taking the bits apart. */
function tableOf(dtype: keyof typeof decoders): Float32Array {
  let table = tables.get(dtype)
  if (table === undefined) {
    table = Float32Array.from({ length: 2 ** dtypes[dtype].bits }, (_, bits) => decoders[dtype](bits))
    tables.set(dtype, table)
  }
  return table
}

/** Whole numbers that the integer dtypes hold. */
const integerLimits = {
  i32: { lowest: -(2n ** 31n), highest: 2n ** 31n - 1n },
  i64: { lowest: -(2n ** 63n), highest: 2n ** 63n - 1n },
  u8: { lowest: 0n, highest: 255n },
} as const

/**
 * Numbers in the storage form of `dtype`: floats rounded to nearest even (fp8 and fp4 saturate, NaN becomes canonical), bool
 * whether not 0.
 * @throws ERR_MOE_EP_ARGUMENT for an odd number of fp4 elements, and for integer dtypes where an element is no whole number
 * of their range.
 */
export function encode(dtype: DType, values: ArrayLike<number | bigint>): StorageArray {
  switch (dtype) {
    case 'f32':
      return encodeF32(values)
    case 'fp4e2m1':
      return encodeFp4(values)
    case 'bool':
      return Uint8Array.from(values, (value) => Number(Number(value) !== 0))
    case 'i32':
    case 'i64':
    case 'u8':
      return encodeIntegers(dtype, values)
    default: {
      const { storage: Storage } = dtypes[dtype]
      const encodeOne = encoders[dtype]
      const result = new Storage(values.length)
      for (let i = 0; i < values.length; i++) result[i] = encodeOne(Number(values[i]))
      return result
    }
  }
}

function encodeF32(values: ArrayLike<number | bigint>): Float32Array {
  const result = new Float32Array(values.length)
  const words = new Uint32Array(result.buffer)
  for (let i = 0; i < values.length; i++) {
    const value = Number(values[i])
    // Which NaN a float array stores is the engine's choice.
    if (Number.isNaN(value)) words[i] = canonicalNaN.f32
    else result[i] = value
  }
  return result
}

function encodeIntegers(dtype: keyof typeof integerLimits, values: ArrayLike<number | bigint>): StorageArray {
  const { storage: Storage } = dtypes[dtype]
  const { lowest, highest } = integerLimits[dtype]
  const result = new Storage(values.length)
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!
    const whole = typeof value === 'bigint' || Number.isInteger(value)
    if (!whole || value < lowest || value > highest) {
      throw argumentError(`values[${i}]`, `a whole number from ${lowest} to ${highest} for ${dtype}`, value)
    }
    result[i] = dtype === 'i64' ? BigInt(value) : Number(value)
  }
  return result
}

function encodeFp4(values: ArrayLike<number | bigint>): Uint8Array {
  const result = new Uint8Array(byteLengthOf('fp4e2m1', values.length))
  for (let i = 0; i < result.length; i++) {
    result[i] = f32ToFp4E2m1(Number(values[2 * i])) | (f32ToFp4E2m1(Number(values[2 * i + 1])) << 4)
  }
  return result
}

/** The numbers that stored elements stand for. i64 beyond 2^53 loses precision: read its BigInt64Array instead. */
export function decode(dtype: DType, stored: StorageArray): Float32Array | Int32Array | Float64Array | Uint8Array {
  switch (dtype) {
    case 'f32':
      return Float32Array.from(stored as Float32Array)
    case 'i32':
      return Int32Array.from(stored as Int32Array)
    case 'u8':
    case 'bool':
      return Uint8Array.from(stored as Uint8Array)
    case 'i64':
      return Float64Array.from(stored as BigInt64Array, Number)
    case 'fp4e2m1':
      return Float32Array.from({ length: stored.length * 2 }, (_, i) =>
        fp4E2m1ToF32((Number(stored[i >> 1]) >> ((i & 1) * 4)) & 15),
      )
    case 'bf16':
      return bf16ToF32Array(stored as Uint16Array)
    default: {
      const table = tableOf(dtype)
      return Float32Array.from(stored as Uint8Array, (bits) => table[bits]!)
    }
  }
}

/** bf16 bits of f32 values, in bulk. */
export function f32ToBf16Array(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  const result = new Uint16Array(values.length)
  for (let i = 0; i < result.length; i++) {
    const bits = words[i]!
    result[i] = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
  }
  return result
}

/** f32 values of bf16 bits, in bulk; exact. */
export function bf16ToF32Array(bits: Uint16Array): Float32Array {
  const result = new Float32Array(bits.length)
  const words = new Uint32Array(result.buffer)
  for (let i = 0; i < bits.length; i++) words[i] = bits[i]! << 16
  return result
}
