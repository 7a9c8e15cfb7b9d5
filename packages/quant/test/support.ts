import { decode, getDefaultDevice, Tensor } from '@moe-ep/core'
import fc from 'fast-check'

/** The same cases on every device: MOE_EP_DEVICE names it. */
export const device = getDefaultDevice()
export const stream = device.defaultStream

export type FloatDType = 'bf16' | 'f16' | 'f32'
export const floatDTypes = ['bf16', 'f16', 'f32'] as const

/** The bytes of a contiguous tensor, read behind the work of the default stream. */
export const bytesOf = async (tensor: Tensor): Promise<Uint8Array> => bytesOfArray(await tensor.read())
/** The bytes of a typed array. */
export const bytesOfArray = (array: ArrayBufferView): Uint8Array =>
  new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength)
/** All bytes of a tensor's memory, gaps between columns included. */
export const memoryOf = async ({ memory }: Tensor): Promise<Uint8Array> => {
  const all = new Tensor({ memory, dtype: 'u8', shape: [memory.byteLength] })
  return (await all.read()) as Uint8Array
}

/** Whether bytes are equal; quicker, and shorter when it fails, than comparing arrays element by element. */
export const sameBytes = (a: ArrayBufferView, b: ArrayBufferView): boolean =>
  Buffer.compare(bytesOfArray(a), bytesOfArray(b)) === 0

/** 16-bit patterns that meet every branch: any bits, the special ones often, ordinary numbers between them. */
export const words16 = fc.oneof(
  fc.integer({ min: 0, max: 0xffff }),
  // zeros, smallest subnormals, one, infinities, NaN, largest finite bf16 and f16
  fc.constantFrom(0, 0x8000, 1, 0x8001, 0x3f80, 0x7f80, 0xff80, 0x7fff, 0xffc1, 0x7f7f, 0x7c00, 0xfc00, 0x7bff),
  fc.integer({ min: 0x3800, max: 0x4400 }),
)
export const words32 = fc.oneof(
  fc.integer({ min: 0, max: 0xffffffff }),
  fc.constantFrom(0, 0x80000000, 1, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00001, 0xffffffff, 0x00800000),
  fc.integer({ min: 0x38000000, max: 0x44000000 }),
)
const ordinary16 = fc
  .record({ sign: fc.boolean(), bits: fc.integer({ min: 0x3000, max: 0x4500 }) })
  .map(({ sign, bits }) => bits | (sign ? 0x8000 : 0))
const ordinary32 = fc
  .record({ sign: fc.boolean(), bits: fc.integer({ min: 0x30000000, max: 0x45000000 }) })
  .map(({ sign, bits }) => (bits | (sign ? 0x80000000 : 0)) >>> 0)

/** Stored elements: hostile bit patterns, ordinary numbers, or zeros of both signs. */
export function storedElements(dtype: FloatDType, count: number): fc.Arbitrary<Float32Array | Uint16Array> {
  const wide = dtype === 'f32'
  const length = { minLength: count, maxLength: count }
  const words = fc.oneof(
    fc.array(wide ? words32 : words16, length),
    fc.array(wide ? ordinary32 : ordinary16, length),
    fc.array(fc.constantFrom(0, wide ? 0x80000000 : 0x8000), length),
  )
  return words.map((bits) => (wide ? new Float32Array(Uint32Array.from(bits).buffer) : Uint16Array.from(bits)))
}

export const numbersOf = (dtype: FloatDType, stored: Float32Array | Uint16Array): Float32Array =>
  decode(dtype, stored) as Float32Array
