import { canonicalNaN, decode, f32ToF16, type Tensor } from '@moe-ep/core'

let f16Values: Float32Array | undefined

/** f32 values of a float tensor: f32 tensors as they lie, others widened into `scratch`, which has at least as many elements. */
export function widen(tensor: Tensor, scratch: Tensor): Float32Array {
  if (tensor.dtype === 'f32') return tensor.data as Float32Array
  const stored = tensor.data as Uint16Array
  const values = (scratch.data as Float32Array).subarray(0, stored.length)
  if (tensor.dtype === 'bf16') {
    const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
    for (let i = 0; i < stored.length; i++) words[i] = stored[i]! << 16
    return values
  }
  f16Values ??= decode(
    'f16',
    Uint16Array.from({ length: 2 ** 16 }, (_, bits) => bits),
  ) as Float32Array
  for (let i = 0; i < stored.length; i++) values[i] = f16Values[stored[i]!]!
  return values
}

/** Writes f32 values into a tensor of as many elements, rounded to nearest even; NaN becomes canonical. */
export function narrow(values: Float32Array, target: Tensor): void {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length)
  if (target.dtype === 'f32') {
    const { buffer, byteOffset, length } = target.data as Float32Array
    const stored = new Uint32Array(buffer, byteOffset, length)
    for (let i = 0; i < length; i++) stored[i] = isNaNWord(words[i]!) ? canonicalNaN.f32 : words[i]!
    return
  }
  const stored = target.data as Uint16Array
  if (target.dtype === 'f16') {
    for (let i = 0; i < stored.length; i++) stored[i] = f32ToF16(values[i]!)
    return
  }
  for (let i = 0; i < stored.length; i++) {
    const bits = words[i]!
    stored[i] = isNaNWord(bits) ? canonicalNaN.bf16 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16
  }
}

function isNaNWord(bits: number): boolean {
  return (bits & 0x7fffffff) > 0x7f800000
}
