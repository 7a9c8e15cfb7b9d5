import { f32ToFp8E4m3, fp8E4m3ToF32, type StorageArray } from '@moe-ep/core'
import type { DequantizedDType } from '../dequantized-output.js'
import { type GroupCodes, quantizeGroups, store } from './group.js'
import { largestMagnitude } from './scale-rules.js'

/**
 * What `quantizePerToken` computes, from the definition.
 * @param x f32 numbers [M, H].
 * @returns e4m3 codes [M, H] and f32 scales [M].
 */
export function quantizePerToken(
  x: ArrayLike<number>,
  options: { readonly hidden: number; readonly scaleUpperBound?: number },
): GroupCodes {
  const { hidden, scaleUpperBound = Infinity } = options
  const rule = { kind: 'per-token', upperBound: Math.fround(scaleUpperBound) } as const
  return quantizeGroups(x, { hidden, groupSize: hidden, rule })
}

/**
 * What `quantizePerTensor` computes, from the definition.
 * @param scale the given scale, an f32; found where absent.
 */
export function quantizePerTensor(
  x: ArrayLike<number>,
  scale?: number,
): { readonly values: Uint8Array; readonly scale: number } {
  const amax = largestMagnitude(x)
  const used = scale ?? (amax === 0 ? 1 : Math.max(Math.fround(amax / 448), 2 ** -126))
  const reciprocal = Math.fround(1 / used)
  return { values: Uint8Array.from(x, (value) => f32ToFp8E4m3(Math.fround(value * reciprocal))), scale: used }
}

/** What `dequantizePerTensor` computes, in the storage form of `dtype`. */
export function dequantizePerTensor(values: ArrayLike<number>, scale: number, dtype: DequantizedDType): StorageArray {
  return store(
    dtype,
    Array.from(values, (code) => Math.fround(fp8E4m3ToF32(code) * scale)),
  )
}
