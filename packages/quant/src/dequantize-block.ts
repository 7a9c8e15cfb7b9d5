import { requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { blockScaleShape, defaultBlockShape } from './blocks.js'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { native } from './native.js'

export interface DequantizeBlockOptions {
  /**
   * Rows and columns that share a scale, 1 or more each; blocks at the edges may be smaller.
   * @default [128, 128]
   */
  readonly blockShape?: readonly [number, number]
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives values[n, k] * scales[n / rows, k / columns]: one f32 product, then rounded to nearest even to `dtype`. The work is
 * enqueued. Overflow and NaN are as in `dequantizePerTokenGroup`.
 *
 * @param values fp8e4m3 [N, K] or [E, N, K], contiguous.
 * @param scales f32 [ceil(N / rows), ceil(K / columns)] (with E in front), contiguous.
 * @returns a tensor of `dtype` and the shape of `values`: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizeBlock(values: Tensor, scales: Tensor, options: DequantizeBlockOptions = {}): Tensor {
  requireTensor('values', values, { dtype: 'fp8e4m3' })
  const { blockShape = defaultBlockShape, stream = values.device.defaultStream } = options
  requireTensor('scales', scales, {
    dtype: 'f32',
    shape: blockScaleShape('values', values, blockShape),
    device: values.device,
  })
  const out = dequantizedOutput(options, values.shape, { values, scales })
  traceOperation('quant.dequantizeBlock', stream, values.byteLength + scales.byteLength + out.byteLength, () =>
    native().dequantizeBlock(stream.handle, values.handle, scales.handle, out.handle, blockShape[0], blockShape[1]),
  )
  return out
}
