import { argumentError } from './error.js'

/** Element types. `fp4e2m1` packs two elements a byte, low nibble first; all others take whole bytes. */
export type DType = 'f32' | 'f16' | 'bf16' | 'fp8e4m3' | 'fp8e5m2' | 'fp4e2m1' | 'e8m0' | 'i32' | 'i64' | 'u8' | 'bool'

/** A typed array that holds elements of some dtype in their storage form (bf16 as Uint16Array, fp8 as Uint8Array, ...). */
export type StorageArray = Float32Array | Uint16Array | Uint8Array | Int32Array | BigInt64Array

/** Constructor of a storage array. */
export interface StorageConstructor {
  new (length: number): StorageArray
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): StorageArray
  readonly BYTES_PER_ELEMENT: number
}

interface DTypeFacts {
  /** Number that native code knows this dtype by; must equal moe_ep/dtype.h. */
  readonly code: number
  readonly bits: number
  readonly storage: StorageConstructor
}

/** Facts of every dtype. Codes are part of the native interface: append, never reorder. */
export const dtypes: Readonly<Record<DType, DTypeFacts>> = {
  f32: { code: 0, bits: 32, storage: Float32Array },
  f16: { code: 1, bits: 16, storage: Uint16Array },
  bf16: { code: 2, bits: 16, storage: Uint16Array },
  fp8e4m3: { code: 3, bits: 8, storage: Uint8Array },
  fp8e5m2: { code: 4, bits: 8, storage: Uint8Array },
  fp4e2m1: { code: 5, bits: 4, storage: Uint8Array },
  e8m0: { code: 6, bits: 8, storage: Uint8Array },
  i32: { code: 7, bits: 32, storage: Int32Array },
  i64: { code: 8, bits: 64, storage: BigInt64Array },
  u8: { code: 9, bits: 8, storage: Uint8Array },
  bool: { code: 10, bits: 8, storage: Uint8Array },
}

/** Whether `value` names a dtype. */
export function isDType(value: unknown): value is DType {
  return typeof value === 'string' && Object.hasOwn(dtypes, value)
}

/**
 * Bytes that `count` contiguous elements of `dtype` take.
 * @throws ERR_MOE_EP_ARGUMENT when packed elements do not fill whole bytes.
 */
export function byteLengthOf(dtype: DType, count: number): number {
  const { bits } = dtypes[dtype]
  if (bits >= 8) return count * (bits / 8)
  if ((count * bits) % 8 !== 0) throw argumentError('count', `a multiple of ${8 / bits} for packed ${dtype}`, count)
  return (count * bits) / 8
}
