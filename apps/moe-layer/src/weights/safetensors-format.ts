/** Bytes of one element of every dtype that a safetensors file may name and that fills whole bytes. */
const elementBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  F8_E8M0: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  I64: 8,
  U64: 8,
  F64: 8,
} as const

/** A dtype as safetensors files spell it. */
export type SafetensorsDType = keyof typeof elementBytes

/** What a file says of one tensor. */
export interface TensorSpec {
  readonly dtype: SafetensorsDType
  readonly shape: readonly number[]
}

/** Bytes of the little-endian number at the start of a file that says how long the header is. */
export const lengthPrefixBytes = 8

/** No header may be longer: the limit that other readers of this format have too. */
export const maxHeaderBytes = 100_000_000

/** The key of the header that holds free text about the file instead of a tensor. */
export const metadataKey = '__metadata__'

/** Whether `value` is a dtype known here. */
export function isSafetensorsDType(value: unknown): value is SafetensorsDType {
  return typeof value === 'string' && Object.hasOwn(elementBytes, value)
}

/** Whether `value` is a list of sizes: whole numbers from 0 up. */
export function isShape(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0)
}

/** Bytes of a tensor, or undefined when they are too many to count exactly (2^53 or more). */
export function tensorByteLength({ dtype, shape }: TensorSpec): number | undefined {
  let bytes: number = elementBytes[dtype]
  for (const size of shape) {
    bytes *= size
    if (!Number.isSafeInteger(bytes)) return undefined
  }
  return bytes
}
