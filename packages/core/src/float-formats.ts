/**
 * Scalar conversions between f32 and the narrow float formats: round to nearest, ties to even. Results are bits.
 * Every arithmetic NaN becomes one canonical NaN a format (all mantissa bits set, sign clear), the one that NVIDIA GPUs
 * produce, so that all devices agree without a fix-up on the fast one.
 */

const float = new Float32Array(1)
const word = new Uint32Array(float.buffer)

export const canonicalNaN = {
  f32: 0x7fffffff,
  f16: 0x7fff,
  bf16: 0x7fff,
  fp8e4m3: 0x7f,
  fp8e5m2: 0x7f,
  e8m0: 0xff,
} as const

/** Bits of `value` rounded to f32; NaN is canonical. */
export function f32ToBits(value: number): number {
  if (Number.isNaN(value)) return canonicalNaN.f32
  float[0] = value
  return word[0]!
}

/** The f32 that has these bits. */
export function bitsToF32(bits: number): number {
  word[0] = bits
  return float[0]!
}

/** bf16 bits of `value` (rounded to f32 first). Overflow gives infinity. */
export function f32ToBf16(value: number): number {
  if (Number.isNaN(value)) return canonicalNaN.bf16
  float[0] = value
  const bits = word[0]!
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
}

/** The f32 value of bf16 bits; exact. */
export function bf16ToF32(bits: number): number {
  word[0] = bits << 16
  return float[0]!
}

/** Shape of a float format with fewer than 16 bits of exponent and mantissa. */
interface SmallFormat {
  readonly exponentBits: number
  readonly mantissaBits: number
  /** Largest finite magnitude's bits. */
  readonly maxBits: number
  /** Bits that an overflow gives: infinity, or the largest finite value where the format saturates. */
  readonly overflowBits: number
  readonly nan: number
}

const formats = {
  f16: { exponentBits: 5, mantissaBits: 10, maxBits: 0x7bff, overflowBits: 0x7c00, nan: canonicalNaN.f16 },
  fp8e4m3: { exponentBits: 4, mantissaBits: 3, maxBits: 0x7e, overflowBits: 0x7e, nan: canonicalNaN.fp8e4m3 },
  fp8e5m2: { exponentBits: 5, mantissaBits: 2, maxBits: 0x7b, overflowBits: 0x7b, nan: canonicalNaN.fp8e5m2 },
  fp4e2m1: { exponentBits: 2, mantissaBits: 1, maxBits: 0x7, overflowBits: 0x7, nan: 0x7 },
} as const satisfies Record<string, SmallFormat>

function toSmall(value: number, format: SmallFormat): number {
  if (Number.isNaN(value)) return format.nan
  const { exponentBits, mantissaBits } = format
  float[0] = value
  const sign = (word[0]! >>> 31) << (exponentBits + mantissaBits)
  const magnitude = Math.abs(float[0]!)
  const bias = 2 ** (exponentBits - 1) - 1
  if (magnitude === Infinity) return sign | format.overflowBits
  // Below the smallest normal number the spacing stays that of the first binade.
  const exponent = Math.max(magnitude === 0 ? -127 : Math.floor(Math.log2(magnitude)), 1 - bias)
  // log2 may be off by one near a power of two; a too small exponent only means finer steps, so correct upwards.
  const correction = magnitude >= 2 ** (exponent + 1) ? 1 : exponent > 1 - bias && magnitude < 2 ** exponent ? -1 : 0
  const e = exponent + correction
  const steps = roundToEven(magnitude * 2 ** (mantissaBits - e))
  const bits = (e + bias - 1) * 2 ** mantissaBits + steps
  return sign | (bits > format.maxBits ? format.overflowBits : bits)
}

function roundToEven(value: number): number {
  const floor = Math.floor(value)
  const rest = value - floor
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor
}

function fromSmall(bits: number, format: SmallFormat, hasInfinity: boolean): number {
  const { exponentBits, mantissaBits } = format
  const magnitudeBits = bits & (2 ** (exponentBits + mantissaBits) - 1)
  const sign = bits >>> (exponentBits + mantissaBits) === 1 ? -1 : 1
  if (hasInfinity && magnitudeBits === format.maxBits + 1) return sign * Infinity
  if (magnitudeBits > format.maxBits) return NaN
  const bias = 2 ** (exponentBits - 1) - 1
  const mantissa = magnitudeBits & (2 ** mantissaBits - 1)
  const exponent = magnitudeBits >>> mantissaBits
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits)
  return sign * (2 ** mantissaBits + mantissa) * 2 ** (exponent - bias - mantissaBits)
}

/** f16 bits of `value` (rounded to f32 first). Overflow gives infinity. */
export function f32ToF16(value: number): number {
  return toSmall(Math.fround(value), formats.f16)
}

/** The value of f16 bits; exact. */
export function f16ToF32(bits: number): number {
  return fromSmall(bits, formats.f16, true)
}

/** fp8 e4m3 (fn) bits of `value` (rounded to f32 first); saturates to +-448, infinities too. */
export function f32ToFp8E4m3(value: number): number {
  return toSmall(Math.fround(value), formats.fp8e4m3)
}

/** The value of fp8 e4m3 (fn) bits; exact. */
export function fp8E4m3ToF32(bits: number): number {
  return fromSmall(bits, formats.fp8e4m3, false)
}

/** fp8 e5m2 bits of `value` (rounded to f32 first); saturates to +-57344, infinities too. */
export function f32ToFp8E5m2(value: number): number {
  return toSmall(Math.fround(value), formats.fp8e5m2)
}

/** The value of fp8 e5m2 bits; exact. */
export function fp8E5m2ToF32(bits: number): number {
  return fromSmall(bits, formats.fp8e5m2, true)
}

/** fp4 e2m1 bits (0 to 15) of `value` (rounded to f32 first); saturates to +-6; NaN gives 6. */
export function f32ToFp4E2m1(value: number): number {
  return toSmall(Math.fround(value), formats.fp4e2m1)
}

/** The value of fp4 e2m1 bits (0 to 15); exact. */
export function fp4E2m1ToF32(bits: number): number {
  return fromSmall(bits, formats.fp4e2m1, false)
}

/** The power of two that an e8m0 byte stands for, 2^(bits-127); 255 is NaN. */
export function e8m0ToF32(bits: number): number {
  return bits === canonicalNaN.e8m0 ? NaN : 2 ** (bits - 127)
}

/**
 * The e8m0 byte of the smallest power of two that is not below `value` (rounded to f32 first). Zeros and what lies below
 * 2^-127 give 0; what lies above 2^127, infinity too, saturates to 254; NaN and negative numbers give NaN.
 */
export function f32ToE8m0(value: number): number {
  const rounded = Math.fround(value)
  if (!(rounded >= 0)) return canonicalNaN.e8m0
  float[0] = rounded
  const bits = word[0]! & 0x7fffffff // minus zero is a zero
  if (bits < 0x00800000) return bits > 0x00400000 ? 1 : 0
  const exponent = (bits >>> 23) + ((bits & 0x7fffff) === 0 ? 0 : 1)
  return Math.min(exponent, 254)
}
