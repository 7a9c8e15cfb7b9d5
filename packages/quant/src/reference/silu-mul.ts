import { decode, siluF32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import type { SiluMulNumerics } from '../silu-mul-quantize.js'
import { type GroupCodes, quantizeGroups, store } from './group.js'

/** Numbers [M, 2H] of some dtype: H gates, then H ups a row. */
interface GatedRows {
  readonly hidden: number
  readonly dtype: DequantizedDType
  /** A number of that dtype. */
  readonly clampLimit?: number
}

const clamp = (x: number, lowest: number, highest: number): number => (x < lowest ? lowest : x > highest ? highest : x)

function products(x: ArrayLike<number>, rows: GatedRows, roundSilu: (silu: number) => number): number[] {
  const { hidden, clampLimit = Infinity } = rows
  return Array.from({ length: x.length / 2 }, (_, i) => {
    const at = Math.floor(i / hidden) * 2 * hidden + (i % hidden)
    const silu = roundSilu(siluF32(clamp(x[at]!, -Infinity, clampLimit)))
    return Math.fround(silu * clamp(x[at + hidden]!, -clampLimit, clampLimit))
  })
}

/**
 * What `siluMul` computes, from the definition.
 * @param x numbers [M, 2H].
 * @returns elements [M, H] in the storage form of `dtype`.
 */
export function siluMul(x: ArrayLike<number>, rows: GatedRows): StorageArray {
  const { dtype } = rows
  return store(
    dtype,
    products(x, rows, (silu) => Number(decode(dtype, store(dtype, [silu]))[0])),
  )
}

/**
 * What `siluMulQuantize` computes, from the definition.
 * @param x numbers [M, 2H].
 * @returns e4m3 codes [M, H] and f32 scales [M, ceil(H / groupSize)].
 */
export function siluMulQuantize(
  x: ArrayLike<number>,
  options: GatedRows & {
    readonly groupSize: number
    readonly numerics: SiluMulNumerics
    readonly powerOfTwo?: boolean
  },
): GroupCodes {
  const { hidden, groupSize, numerics, powerOfTwo = false } = options
  if (numerics === 'f32') {
    const rule = { kind: 'reciprocal', powerOfTwo } as const
    return quantizeGroups(
      products(x, options, (silu) => silu),
      { hidden, groupSize, rule },
    )
  }
  const rounded = decode(options.dtype, siluMul(x, options))
  const rule = { kind: numerics === 'vllm-masked' ? 'masked-bf16' : 'vllm', powerOfTwo } as const
  return quantizeGroups(rounded, { hidden, groupSize, rule })
}
