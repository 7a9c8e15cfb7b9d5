/**
 * exp, exp2, log2 and silu as fixed sequences of single f32 operations, so that every device gives the same bits: the
 * mirror of native/include/moe_ep/math.h, which says how large the errors are. Arguments are rounded to f32 first.
 */
import { bitsToF32, f32ToBits } from './float-formats.js'

const round = Math.fround
const [ln2, log2E] = [round(Math.LN2), round(Math.LOG2E)]
const times = (a: number, b: number): number => round(a * b)
const plus = (a: number, b: number): number => round(a + b)
const minus = (a: number, b: number): number => round(a - b)

/** Adding it to a number below 2^22 rounds that to a whole number. */
const roundToWhole = 12582912
const wholeOf = (x: number): number => minus(plus(x, roundToWhole), roundToWhole)

/** The polynomial with these coefficients, highest power first, by Horner's rule. */
const horner = (coefficients: readonly number[], x: number): number =>
  coefficients.map(round).reduce((series, coefficient) => plus(times(series, x), coefficient))

const clamp = (x: number, lowest: number, highest: number): number => (x < lowest ? lowest : x > highest ? highest : x)

/** value * 2^exponent, rounded once. */
function scaleByPowerOfTwo(value: number, exponent: number): number {
  const half = Math.floor(exponent / 2)
  return times(times(value, 2 ** half), 2 ** (exponent - half))
}

const expSeries = [1.3814537e-3, 8.368745e-3, 4.166839e-2, 1.6666521e-1, 4.9999994e-1]
const exp2Series = [1.5353366e-4, 1.3398874e-3, 9.618437e-3, 5.5503324e-2, 2.4022648e-1, ln2, 1]
const log2Series = [
  -1.0994928e-1,
  1.8617463e-1,
  -1.910627e-1,
  2.0460066e-1,
  -2.3961742e-1,
  2.885674e-1,
  -3.6069664e-1,
  4.8089823e-1,
  -7.2134733e-1,
  log2E,
]

/** e^x in f32, within one unit in the last place. Infinity above 88.72284, zero below -103.97. */
export function expF32(x: number): number {
  const clamped = clamp(round(x), -105, 90)
  if (Number.isNaN(clamped)) return NaN
  const whole = wholeOf(times(clamped, log2E))
  const rest = minus(minus(clamped, times(whole, 0.693359375)), times(whole, round(-2.1219444e-4)))
  const power = plus(plus(times(horner(expSeries, rest), times(rest, rest)), rest), 1)
  return scaleByPowerOfTwo(power, whole)
}

/** 2^x in f32, within 1.23 units in the last place; exact for whole x. Infinity from 128 on, zero below -150. */
export function exp2F32(x: number): number {
  const clamped = clamp(round(x), -152, 130)
  if (Number.isNaN(clamped)) return NaN
  const whole = wholeOf(clamped)
  return scaleByPowerOfTwo(horner(exp2Series, minus(clamped, whole)), whole)
}

/** The logarithm to base 2 in f32, within 1.8 units in the last place; exact for powers of two. -Infinity for zeros, NaN for negative numbers. */
export function log2F32(x: number): number {
  const number = round(x)
  if (number === 0) return -Infinity
  if (Number.isNaN(number) || number < 0) return NaN
  if (number === Infinity) return Infinity
  const tiny = number < 2 ** -126
  const bits = f32ToBits(tiny ? times(number, 2 ** 23) : number)
  // The mantissa is taken from [sqrt(1/2), sqrt(2)), so that results near zero lose nothing.
  const exponent = (bits - 0x3f3504f3) >> 23
  const rest = minus(bitsToF32(bits - exponent * 2 ** 23), 1)
  return plus(times(horner(log2Series, rest), rest), exponent - (tiny ? 23 : 0))
}

/** x / (1 + e^-x) in f32. Minus infinity gives NaN, as the quotient of infinities is. */
export function siluF32(x: number): number {
  const number = round(x)
  return round(number / plus(1, expF32(-number)))
}
