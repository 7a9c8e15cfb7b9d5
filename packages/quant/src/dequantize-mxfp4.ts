import type { Tensor } from '@moe-ep/core'
import { dequantizeMx, type DequantizeMxOptions } from './mx.js'

/**
 * Gives values[m, h] * 2^(scales[m, h / 32] - 127): one f32 product, then rounded to nearest even to `dtype`. The work is enqueued.
 *
 * bf16 and f16 overflow to infinity. Scale bytes 255 and NaN values give the canonical NaN.
 *
 * @param values fp4e2m1 [M, H], contiguous; M may be 0, H may not.
 * @param scales e8m0 [M, ceil(H / 32)], contiguous.
 * @returns [M, H] of `dtype`: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizeMxfp4(values: Tensor, scales: Tensor, options: DequantizeMxOptions = {}): Tensor {
  return dequantizeMx({ operation: 'quant.dequantizeMxfp4', dtype: 'fp4e2m1' }, values, scales, options)
}
