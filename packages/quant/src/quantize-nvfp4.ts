import { requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireDisjoint, requireName } from './groups.js'
import { requireRows } from './mx.js'
import { native } from './native.js'
import { type Nvfp4ScaleLayout, nvfp4ScaleShape, requireGlobalScale } from './nvfp4-scales.js'

/** A matrix as NVFP4: element [m, h] stands for values[m, h] * scales[m, h / 16] / globalScale. */
export interface Nvfp4Quantized {
  /** fp4e2m1 [M, H]. */
  readonly values: Tensor
  /** fp8e4m3 [M, ceil(H / 16)], or in the shape of the swizzled layout. */
  readonly scales: Tensor
}

export interface QuantizeNvfp4Options {
  /** @default 'row-major' */
  readonly scaleLayout?: Nvfp4ScaleLayout
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap the inputs or each other. */
  readonly out?: Nvfp4Quantized
}

/**
 * Gives `x` as NVFP4: packed e2m1 elements with one e4m3 scale for each 16 of a row, under one f32 scale. The work is enqueued.
 *
 * With g = globalScale and amax = the largest |x| of the group, every step one f32 operation: scale = e4m3((g * amax) / 6), which
 * saturates at 448; t = scale * (1 / g); value = e2m1(x * (1 / t)), or (signed) zero where t is 0; e2m1 saturates at 6.
 *
 * These are the numbers of vLLM's NVFP4 kernels, whose `global_scale` is this g: a multiplier for quantising.
 *
 * No e2m1 code is NaN, so a NaN or an infinity makes the group's scale NaN (0x7f): its own code is 7, those of finite
 * elements (signed) zero, and the group dequantises to NaN.
 *
 * @param x bf16, f16 or f32 [M, H], contiguous; M may be 0, H is even and not 0.
 * @param globalScale f32 [1], usually 448 * 6 / (largest magnitude of the tensor); read when the work runs and not checked.
 * @returns values fp4e2m1 [M, H], the even element in the low half of a byte, and scales fp8e4m3: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizeNvfp4(x: Tensor, globalScale: Tensor, options: QuantizeNvfp4Options = {}): Nvfp4Quantized {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [null, null] })
  requireRows('x', x, true)
  requireGlobalScale(globalScale, x.device)
  const { scaleLayout = 'row-major', stream = x.device.defaultStream, out } = options
  requireName('scaleLayout', scaleLayout, ['row-major', 'swizzled'])
  const scaleShape = nvfp4ScaleShape(x.shape[0]!, x.shape[1]!, scaleLayout)
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype: 'fp4e2m1', shape: x.shape, device: x.device })
    requireTensor('out.scales', out.scales, { dtype: 'fp8e4m3', shape: scaleShape, device: x.device })
    requireDisjoint({ x, globalScale, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: Tensor.empty(x.shape, 'fp4e2m1', x.device),
    scales: Tensor.empty(scaleShape, 'fp8e4m3', x.device),
  }
  traceOperation('quant.quantizeNvfp4', stream, x.byteLength + values.byteLength + scales.byteLength, () =>
    native().quantizeNvfp4(
      stream.handle,
      x.handle,
      globalScale.handle,
      values.handle,
      scales.handle,
      scaleLayout === 'swizzled',
    ),
  )
  return { values, scales }
}
