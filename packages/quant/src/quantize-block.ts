import { requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { blockScaleShape, defaultBlockShape } from './blocks.js'
import { requireDisjoint, requireName } from './groups.js'
import { native } from './native.js'
import type { GroupQuantized } from './quantize-per-token-group.js'

export interface QuantizeBlockOptions {
  /**
   * Rows and columns that share a scale, 1 or more each; blocks at the edges may be smaller.
   * @default [128, 128]
   */
  readonly blockShape?: readonly [number, number]
  /**
   * `'ue8m0'` rounds each scale up to a power of two.
   * @default 'f32'
   */
  readonly scaleFormat?: 'f32' | 'ue8m0'
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap `weight` or each other. */
  readonly out?: GroupQuantized
}

/**
 * Gives a weight as fp8 e4m3 with one f32 scale for each block of rows and columns. The work is enqueued.
 *
 * With amax = the largest magnitude of the block (at the edges, of what there is of it): scale = max(amax, 1e-4) / 448 (`'ue8m0'`: the smallest power of two not below
 * that), value = e4m3(weight * (1 / scale)); every step is one f32 operation. Saturation, NaN and infinities are as in
 * `quantizePerTokenGroup`.
 *
 * @param weight bf16, f16 or f32 [N, K] or [E, N, K], contiguous.
 * @returns values fp8e4m3 of the same shape and scales f32 [ceil(N / rows), ceil(K / columns)] (with E in front): `out`
 * where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizeBlock(weight: Tensor, options: QuantizeBlockOptions = {}): GroupQuantized {
  requireTensor('weight', weight, { dtype: ['bf16', 'f16', 'f32'] })
  const { blockShape = defaultBlockShape, scaleFormat = 'f32', stream = weight.device.defaultStream, out } = options
  requireName('scaleFormat', scaleFormat, ['f32', 'ue8m0'])
  const scaleShape = blockScaleShape('weight', weight, blockShape)
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype: 'fp8e4m3', shape: weight.shape, device: weight.device })
    requireTensor('out.scales', out.scales, { dtype: 'f32', shape: scaleShape, device: weight.device })
    requireDisjoint({ weight, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: Tensor.empty(weight.shape, 'fp8e4m3', weight.device),
    scales: Tensor.empty(scaleShape, 'f32', weight.device),
  }
  traceOperation('quant.quantizeBlock', stream, weight.byteLength + values.byteLength + scales.byteLength, () =>
    native().quantizeBlock(
      stream.handle,
      weight.handle,
      values.handle,
      scales.handle,
      blockShape[0],
      blockShape[1],
      scaleFormat === 'ue8m0',
    ),
  )
  return { values, scales }
}
