import type { Tensor } from '@moe-ep/core'
import { type MxQuantized, quantizeMx, type QuantizeMxOptions } from './mx.js'

/** How an e8m0 scale comes from a group's amax; see {@link quantizeMxfp4}. */
export type Mxfp4ScaleRule = 'ocp' | 'ceil' | 'even'

/**
 * Gives `x` as MXFP4: packed e2m1 elements with one e8m0 scale for each 32 of a row. The work is enqueued.
 *
 * With amax = the largest |x| of the group, scale = 2^e and value = e2m1(x * 2^-e), saturating at 6:
 *
 * - `'ocp'`: e = floor(log2(amax)) - 2, the rule of the OCP MX specification. Elements above 1.5 * 2^(e + 2) saturate.
 * - `'even'`: the same for amax rounded half up to two significant bits: from 1.75 * 2^n on it counts as 2^(n + 1).
 * - `'ceil'`: the smallest e with 2^e >= amax / 6 (one f32 division). Nothing saturates.
 *
 * e is clamped to [-127, 127]; zeros get -127. No e2m1 code is NaN, so a NaN or an infinity makes the group's scale NaN (byte 255):
 * its own code is 7, those of finite elements (signed) zero, and the group dequantises to NaN.
 *
 * @param x bf16, f16 or f32 [M, H], contiguous; M may be 0, H is even and not 0.
 * @returns values fp4e2m1 [M, H], the even element in the low half of a byte, and scales e8m0 [M, ceil(H / 32)]: `out` where
 * given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizeMxfp4(x: Tensor, options: QuantizeMxOptions<Mxfp4ScaleRule> = {}): MxQuantized {
  return quantizeMx({ operation: 'quant.quantizeMxfp4', dtype: 'fp4e2m1', rules: ['ocp', 'ceil', 'even'] }, x, options)
}
