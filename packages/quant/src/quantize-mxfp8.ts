import type { Tensor } from '@moe-ep/core'
import { type MxQuantized, quantizeMx, type QuantizeMxOptions } from './mx.js'

/** How an e8m0 scale comes from a group's amax; see {@link quantizeMxfp8}. */
export type Mxfp8ScaleRule = 'ocp' | 'ceil'

/**
 * Gives `x` as MXFP8: e4m3 elements with one e8m0 scale for each 32 of a row. The work is enqueued.
 *
 * With amax = the largest |x| of the group, scale = 2^e and value = e4m3(x * 2^-e), saturating at 448:
 *
 * - `'ocp'`: e = floor(log2(amax)) - 8, the rule of the OCP MX specification. Elements above 1.75 * 2^(e + 8) saturate.
 * - `'ceil'`: the smallest e with 2^e >= amax / 448 (one f32 division). Nothing saturates.
 *
 * e is clamped to [-127, 127]; zeros get -127. A NaN element gives the code 0x7f and is passed over in amax. An infinity makes
 * the scale NaN (byte 255), its own code 0x7f and the codes of finite elements (signed) zero: the group dequantises to NaN.
 *
 * @param x bf16, f16 or f32 [M, H], contiguous; M may be 0, H may not.
 * @returns values fp8e4m3 [M, H] and scales e8m0 [M, ceil(H / 32)]: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizeMxfp8(x: Tensor, options: QuantizeMxOptions<Mxfp8ScaleRule> = {}): MxQuantized {
  return quantizeMx({ operation: 'quant.quantizeMxfp8', dtype: 'fp8e4m3', rules: ['ocp', 'ceil'] }, x, options)
}
