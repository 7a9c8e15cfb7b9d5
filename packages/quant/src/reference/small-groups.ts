import {
  e8m0ToF32,
  f32ToBits,
  f32ToE8m0,
  f32ToFp4E2m1,
  f32ToFp8E4m3,
  fp4E2m1ToF32,
  fp8E4m3ToF32,
  type StorageArray,
} from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import type { Nvfp4ScaleLayout } from '../nvfp4-scales.js'
import { store } from './group.js'
import { largestMagnitude } from './scale-rules.js'

/** Element codes (one a byte for fp8, two for fp4) of a matrix, and a scale code a group in row-major order. */
export interface SmallGroupCodes {
  readonly values: Uint8Array
  readonly scales: Uint8Array
}

/** The two element formats, and what the MX rules need to know of them. */
const mxFormats = {
  fp8e4m3: { largest: 448, largestExponent: 8, encode: f32ToFp8E4m3, decode: fp8E4m3ToF32 },
  fp4e2m1: { largest: 6, largestExponent: 2, encode: f32ToFp4E2m1, decode: fp4E2m1ToF32 },
} as const

/** What scales and codes of a group are made from. */
interface SmallGroupScale {
  readonly code: number
  readonly factor: number
}

const pack = (codes: Uint8Array): Uint8Array =>
  Uint8Array.from({ length: codes.length / 2 }, (_, i) => codes[2 * i]! | (codes[2 * i + 1]! << 4))
const unpack = (bytes: ArrayLike<number>): number[] =>
  Array.from({ length: bytes.length * 2 }, (_, i) => (bytes[i >> 1]! >> (4 * (i & 1))) & 15)

function quantizeSmallGroups(
  x: ArrayLike<number>,
  options: { readonly hidden: number; readonly groupSize: number; readonly dtype: keyof typeof mxFormats },
  scaleOf: (amax: number) => SmallGroupScale,
): SmallGroupCodes {
  const { hidden, groupSize, dtype } = options
  const codes = new Uint8Array(x.length)
  const scales: number[] = []
  for (let row = 0; row < x.length; row += hidden) {
    for (let begin = row; begin < row + hidden; begin += groupSize) {
      const group = Array.prototype.slice.call(x, begin, Math.min(begin + groupSize, row + hidden)) as number[]
      const poisoned = dtype === 'fp4e2m1' && group.some(Number.isNaN)
      const { code, factor } = scaleOf(poisoned ? Infinity : largestMagnitude(group))
      scales.push(code)
      group.forEach((value, i) => {
        codes[begin + i] = mxFormats[dtype].encode(Math.fround(value * factor))
      })
    }
  }
  return { values: dtype === 'fp4e2m1' ? pack(codes) : codes, scales: Uint8Array.from(scales) }
}

/** The e8m0 byte for a finite amax. */
function mxScaleByte(amax: number, dtype: keyof typeof mxFormats, rule: 'ocp' | 'ceil' | 'even'): number {
  const { largest, largestExponent } = mxFormats[dtype]
  if (rule === 'ceil') return f32ToE8m0(amax / largest)
  // Half a step of two significant bits; carries run into the exponent.
  const bits = f32ToBits(amax) + (rule === 'even' ? 1 << 21 : 0)
  return Math.min(Math.max((bits >>> 23) - largestExponent, 0), 254)
}

/**
 * What `quantizeMxfp8` and `quantizeMxfp4` compute, from the definition.
 * @param x f32 numbers [M, H].
 */
export function quantizeMx(
  x: ArrayLike<number>,
  options: {
    readonly hidden: number
    readonly dtype: 'fp8e4m3' | 'fp4e2m1'
    readonly scaleRule: 'ocp' | 'ceil' | 'even'
  },
): SmallGroupCodes {
  const { dtype, scaleRule } = options
  return quantizeSmallGroups(x, { ...options, groupSize: 32 }, (amax) => {
    if (amax === Infinity) return { code: 0xff, factor: 0 }
    const code = mxScaleByte(amax, dtype, scaleRule)
    return { code, factor: 2 ** (127 - code) }
  })
}

/**
 * What `dequantizeMxfp8` and `dequantizeMxfp4` compute, from the definition.
 * @returns elements [M, H] in the storage form of `to`.
 */
export function dequantizeMx(
  values: ArrayLike<number>,
  scales: ArrayLike<number>,
  options: { readonly hidden: number; readonly dtype: 'fp8e4m3' | 'fp4e2m1'; readonly to: DequantizedDType },
): StorageArray {
  const { hidden, dtype, to } = options
  const groups = Math.ceil(hidden / 32)
  const codes = dtype === 'fp4e2m1' ? unpack(values) : Array.from(values)
  const products = codes.map((code, i) => {
    const scale = e8m0ToF32(scales[Math.floor(i / hidden) * groups + Math.floor((i % hidden) / 32)]!)
    return Math.fround(mxFormats[dtype].decode(code) * scale)
  })
  return store(to, products)
}

/**
 * What `quantizeNvfp4` computes with row-major scales, from the definition; see `arrangeNvfp4Scales`.
 * @param x f32 numbers [M, H].
 */
export function quantizeNvfp4(
  x: ArrayLike<number>,
  options: { readonly hidden: number; readonly globalScale: number },
): SmallGroupCodes {
  const { hidden, globalScale } = options
  const reciprocal = Math.fround(1 / globalScale)
  return quantizeSmallGroups(x, { hidden, groupSize: 16, dtype: 'fp4e2m1' }, (amax) => {
    if (amax === Infinity) return { code: 0x7f, factor: 0 }
    const code = f32ToFp8E4m3(Math.fround(Math.fround(globalScale * amax) / 6))
    const scale = Math.fround(fp8E4m3ToF32(code) * reciprocal)
    return { code, factor: scale === 0 ? 0 : Math.fround(1 / scale) }
  })
}

/**
 * What `dequantizeNvfp4` computes from row-major scales, from the definition.
 * @returns elements [M, H] in the storage form of `to`.
 */
export function dequantizeNvfp4(
  values: ArrayLike<number>,
  scales: ArrayLike<number>,
  options: { readonly hidden: number; readonly globalScale: number; readonly to: DequantizedDType },
): StorageArray {
  const { hidden, globalScale, to } = options
  const groups = Math.ceil(hidden / 16)
  const numbers = unpack(values).map((code, i) => {
    const scale = fp8E4m3ToF32(scales[Math.floor(i / hidden) * groups + Math.floor((i % hidden) / 16)]!)
    return Math.fround(Math.fround(fp4E2m1ToF32(code) * scale) / globalScale)
  })
  return store(to, numbers)
}

/** The memory of NVFP4 scales whose row-major codes [M, G] are these; 0 in the padding of the swizzled layout. */
export function arrangeNvfp4Scales(
  scales: Uint8Array,
  options: { readonly rows: number; readonly groups: number; readonly layout: Nvfp4ScaleLayout },
): Uint8Array {
  const { rows, groups, layout } = options
  if (layout === 'row-major') return scales.slice()
  const tilesAcross = Math.ceil(groups / 4)
  const memory = new Uint8Array(Math.ceil(rows / 128) * tilesAcross * 512)
  scales.forEach((code, i) => {
    const [m, g] = [Math.floor(i / groups), i % groups]
    const tile = Math.floor(m / 128) * tilesAcross + Math.floor(g / 4)
    memory[tile * 512 + (m % 32) * 16 + Math.floor((m % 128) / 32) * 4 + (g % 4)] = code
  })
  return memory
}
