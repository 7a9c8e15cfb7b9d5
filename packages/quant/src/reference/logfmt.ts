import { bf16ToF32, exp2F32, f32ToBf16, log2F32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import { logFmt10RowBytes, logFmtGroupSize } from '../logfmt.js'
import { store } from './group.js'

const round = Math.fround
const nanCode = 0x200

/** code c of a group stands for 2^(low + (c - 1) * step). */
function logScale(smallest: number, largest: number): { readonly low: number; readonly step: number } {
  const high = log2F32(largest)
  const [floor, least] = [round(high - 32), log2F32(smallest)]
  // Written so that a NaN, which no quantisation makes, goes the way that the devices take.
  const low = floor < least ? least : floor
  return { low, step: round(round(high - low) / 510) }
}

/** The code of one element in its group. */
function codeOf(x: number, { low, step }: { readonly low: number; readonly step: number }): number {
  if (!Number.isFinite(x)) return nanCode
  if (x === 0) return 0
  const inverse = step > 0 ? round(1 / step) : 0
  const middle = log2F32(round(round(1 + exp2F32(step)) * 0.5))
  const rounding = step > 0 ? round(2 - round(middle * inverse)) : 1
  const place = round(round(round(log2F32(Math.abs(x)) - low) * inverse) + rounding)
  const code = Math.floor(Math.min(Math.max(place, 0), 511))
  return code === 0 || x > 0 ? code : code | nanCode
}

/** Puts 10-bit codes one after the other, lowest bits first. */
function packTenBits(codes: readonly number[]): number[] {
  const bytes: number[] = new Array(Math.ceil((codes.length * 10) / 8)).fill(0)
  codes.forEach((code, i) => {
    for (let bit = 0; bit < 10; bit++) bytes[(10 * i + bit) >> 3]! |= ((code >> bit) & 1) << ((10 * i + bit) & 7)
  })
  return bytes
}

function unpackTenBits(bytes: ArrayLike<number>, count: number): number[] {
  return Array.from({ length: count }, (_, i) => {
    let code = 0
    for (let bit = 0; bit < 10; bit++) code |= ((bytes[(10 * i + bit) >> 3]! >> ((10 * i + bit) & 7)) & 1) << bit
    return code
  })
}

/**
 * What `quantizeLogFmt10` computes, from the definition.
 * @param x bf16 numbers [M, H].
 * @returns bytes [M, logFmt10RowBytes(H)] and bf16 bits [M, ceil(H / 128), 2].
 */
export function quantizeLogFmt10(
  x: ArrayLike<number>,
  options: { readonly hidden: number },
): { readonly codes: Uint8Array; readonly ranges: Uint16Array } {
  const { hidden } = options
  const codes: number[] = []
  const ranges: number[] = []
  for (let row = 0; row < x.length; row += hidden) {
    for (let begin = row; begin < row + hidden; begin += logFmtGroupSize) {
      const end = Math.min(begin + logFmtGroupSize, row + hidden)
      const group = Array.prototype.slice.call(x, begin, end) as number[]
      const magnitudes = group.map(Math.abs).filter((magnitude) => magnitude > 0 && magnitude < Infinity)
      const [smallest, largest] = magnitudes.length === 0 ? [0, 0] : [Math.min(...magnitudes), Math.max(...magnitudes)]
      ranges.push(f32ToBf16(smallest), f32ToBf16(largest))
      const scale = logScale(smallest, largest)
      codes.push(...packTenBits(group.map((value) => codeOf(value, scale))))
    }
  }
  return { codes: Uint8Array.from(codes), ranges: Uint16Array.from(ranges) }
}

/**
 * What `dequantizeLogFmt10` computes, from the definition.
 * @param codes bytes [M, logFmt10RowBytes(H)].
 * @param ranges bf16 bits [M, ceil(H / 128), 2].
 * @returns elements [M, H] in the storage form of `dtype`.
 */
export function dequantizeLogFmt10(
  codes: Uint8Array,
  ranges: ArrayLike<number>,
  options: { readonly hidden: number; readonly dtype: DequantizedDType },
): StorageArray {
  const { hidden, dtype } = options
  const rowBytes = logFmt10RowBytes(hidden)
  const groups = Math.ceil(hidden / logFmtGroupSize)
  const numbers: number[] = []
  for (let row = 0; row < codes.length / rowBytes; row++) {
    for (let g = 0; g < groups; g++) {
      const at = 2 * (row * groups + g)
      const { low, step } = logScale(bf16ToF32(ranges[at]!), bf16ToF32(ranges[at + 1]!))
      const count = Math.min(logFmtGroupSize, hidden - g * logFmtGroupSize)
      for (const code of unpackTenBits(codes.subarray(row * rowBytes + g * 160), count)) {
        const magnitude = exp2F32(round(round(((code & 511) - 1) * step) + low))
        if (code === 0 || code === nanCode) numbers.push(code === 0 ? 0 : NaN)
        else numbers.push((code & nanCode) === 0 ? magnitude : -magnitude)
      }
    }
  }
  return store(dtype, numbers)
}
