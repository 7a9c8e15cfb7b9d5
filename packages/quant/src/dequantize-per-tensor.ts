import { requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { native } from './native.js'

export interface DequantizePerTensorOptions {
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives values[i] * scale[0]: one f32 product, then rounded to nearest even to `dtype`. The work is enqueued. Overflow and
 * NaN are as in `dequantizePerTokenGroup`.
 *
 * @param values fp8e4m3 of any shape, contiguous.
 * @param scale f32 [1].
 * @returns a tensor of `dtype` and the same shape: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizePerTensor(values: Tensor, scale: Tensor, options: DequantizePerTensorOptions = {}): Tensor {
  requireTensor('values', values, { dtype: 'fp8e4m3' })
  requireTensor('scale', scale, { dtype: 'f32', shape: [1], device: values.device })
  const { stream = values.device.defaultStream } = options
  const out = dequantizedOutput(options, values.shape, { values, scale })
  traceOperation('quant.dequantizePerTensor', stream, values.byteLength + out.byteLength, () =>
    native().dequantizePerTensor(stream.handle, values.handle, scale.handle, out.handle),
  )
  return out
}
