import { requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireDisjoint } from './groups.js'
import { native } from './native.js'

/** A tensor as fp8 with one scale: element i stands for values[i] * scale[0]. */
export interface TensorQuantized {
  /** fp8e4m3, of the shape of the input. */
  readonly values: Tensor
  /** f32 [1], the multiplier that dequantises. */
  readonly scale: Tensor
}

export interface QuantizePerTensorOptions {
  /**
   * f32 [1], the multiplier that dequantises; read when the work runs. It is not checked: what zero, negative numbers and NaN
   * give follows from the arithmetic.
   * @default found from the largest magnitude
   */
  readonly scale?: Tensor
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. `scale` is written only where none is given. Must not overlap `x` or each other. */
  readonly out?: { readonly values: Tensor; readonly scale?: Tensor }
}

/**
 * Gives `x` as fp8 e4m3 with one f32 scale for the whole tensor. The work is enqueued.
 *
 * The scale is the one given, or amax / 448 with amax = the largest |x|: 1 where amax is 0 (or there is no element), and
 * never below 2^-126. The rest is as in vLLM, which gives zeros a scale of 0 and then NaN. value = e4m3(x * (1 / scale)); every step is one f32 operation, e4m3 rounds to nearest even and saturates at
 * 448. A NaN element gives the code 0x7f and is passed over in amax. An infinity saturates under a given scale; else it
 * makes the scale infinity, its own code 0x7f and the codes of finite elements (signed) zero: all dequantise to NaN.
 *
 * @param x bf16, f16 or f32 of any shape, contiguous.
 * @returns values fp8e4m3 of the same shape and scale f32 [1]: `out` where given, the given scale where there is one.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizePerTensor(x: Tensor, options: QuantizePerTensorOptions = {}): TensorQuantized {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'] })
  const { stream = x.device.defaultStream, out } = options
  const dynamic = options.scale === undefined
  if (options.scale !== undefined) requireTensor('scale', options.scale, { dtype: 'f32', shape: [1], device: x.device })
  if (out !== undefined) requireTensor('out.values', out.values, { dtype: 'fp8e4m3', shape: x.shape, device: x.device })
  if (out?.scale !== undefined) requireTensor('out.scale', out.scale, { dtype: 'f32', shape: [1], device: x.device })
  const scale = options.scale ?? out?.scale ?? Tensor.empty([1], 'f32', x.device)
  const values = out?.values ?? Tensor.empty(x.shape, 'fp8e4m3', x.device)
  if (out !== undefined) requireDisjoint({ x, 'out.values': values, [dynamic ? 'out.scale' : 'scale']: scale })
  // A scale that is found takes a first pass over x.
  const bytes = x.byteLength * (dynamic ? 2 : 1) + values.byteLength
  traceOperation('quant.quantizePerTensor', stream, bytes, () =>
    native().quantizePerTensor(stream.handle, x.handle, values.handle, scale.handle, dynamic),
  )
  return { values, scale }
}
