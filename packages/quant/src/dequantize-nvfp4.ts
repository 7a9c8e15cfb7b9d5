import { requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { requireName } from './groups.js'
import { requireRows } from './mx.js'
import { native } from './native.js'
import { type Nvfp4ScaleLayout, nvfp4ScaleShape, requireGlobalScale } from './nvfp4-scales.js'

export interface DequantizeNvfp4Options {
  /** @default 'row-major' */
  readonly scaleLayout?: Nvfp4ScaleLayout
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write [M, H], instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives (values[m, h] * scales[m, h / 16]) / globalScale: an exact f32 product, one f32 division, then rounded to nearest even to
 * `dtype`. The work is enqueued. bf16 and f16 overflow to infinity; every NaN is canonical.
 *
 * @param values fp4e2m1 [M, H], contiguous; M may be 0, H may not.
 * @param scales fp8e4m3 [M, ceil(H / 16)], or in the shape of the swizzled layout; contiguous.
 * @param globalScale f32 [1], the one that the matrix was quantised with.
 * @returns [M, H] of `dtype`: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizeNvfp4(
  values: Tensor,
  scales: Tensor,
  globalScale: Tensor,
  options: DequantizeNvfp4Options = {},
): Tensor {
  requireTensor('values', values, { dtype: 'fp4e2m1', shape: [null, null] })
  requireRows('values', values, true)
  requireGlobalScale(globalScale, values.device)
  const { scaleLayout = 'row-major', stream = values.device.defaultStream } = options
  requireName('scaleLayout', scaleLayout, ['row-major', 'swizzled'])
  const scaleShape = nvfp4ScaleShape(values.shape[0]!, values.shape[1]!, scaleLayout)
  requireTensor('scales', scales, { dtype: 'fp8e4m3', shape: scaleShape, device: values.device })
  const out = dequantizedOutput(options, values.shape, { values, scales, globalScale })
  traceOperation('quant.dequantizeNvfp4', stream, values.byteLength + scales.byteLength + out.byteLength, () =>
    native().dequantizeNvfp4(
      stream.handle,
      values.handle,
      scales.handle,
      globalScale.handle,
      out.handle,
      scaleLayout === 'swizzled',
    ),
  )
  return out
}
