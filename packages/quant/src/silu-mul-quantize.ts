import { argumentError, requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type GatedOptions, newRows, requireGatedInput } from './gated-input.js'
import { defaultGroupSize, numGroupsOf, requireDisjoint, requireName } from './groups.js'
import { groupNumericsCodes, native } from './native.js'
import type { GroupQuantized } from './quantize-per-token-group.js'
import {
  allocateScales,
  defaultLayoutOf,
  requireScaleKind,
  requireScales,
  type ScaleFormat,
  type ScaleLayout,
} from './scale-layout.js'

/** Where values are rounded on the way from gates and ups to fp8; see {@link siluMulQuantize}. */
export type SiluMulNumerics = 'unfused' | 'vllm-contiguous' | 'vllm-masked' | 'f32'

export interface SiluMulQuantizeOptions extends GatedOptions {
  /**
   * Consecutive products of a row that share a scale, 1 or more; the last group of a row may be short.
   * @default 128
   */
  readonly groupSize?: number
  /** @default 'vllm-contiguous' */
  readonly numerics?: SiluMulNumerics
  /** @default 'f32' */
  readonly scaleFormat?: ScaleFormat
  /** @default 'row-major'; 'column-major-tma' for packed scales */
  readonly scaleLayout?: ScaleLayout
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap the inputs or each other. */
  readonly out?: GroupQuantized
}

const numericsNames = ['unfused', 'vllm-contiguous', 'vllm-masked', 'f32'] as const

/**
 * Gives silu(gate) * up as fp8 e4m3 with one scale for each group of a row, in one pass. The work is enqueued.
 *
 * - `'unfused'` and `'vllm-contiguous'` (the same): what `siluMul` and then `quantizePerTokenGroup` give.
 * - `'vllm-masked'` (bf16 only): every step is rounded to bf16. With y = bf16(bf16(silu) * up), a = max(amax, bf16(1e-10)):
 *   scale = bf16(a * bf16(1 / 448)), value = e4m3(bf16(y * bf16(1 / scale))). bf16(1 / 448) is a little small, so values can
 *   pass 448 and saturate. In the ue8m0 formats scale = 2^ceil(bf16(log2(scale))): the rounded logarithm can bring the
 *   power below the scale.
 * - `'f32'`: y = silu * up in f32, scale = max(amax, 1e-10) * (1 / 448), value = e4m3(y / scale). In the ue8m0 formats the scale
 *   is rounded up to a power of two without another floor, so that zeros get 2^-42.
 *
 * Saturation, NaN and infinities are as in `siluMul` and `quantizePerTokenGroup`.
 *
 * @param x bf16, f16 or f32 [M, 2H] or [E, T, 2H], contiguous; H is 1 or more.
 * @returns values fp8e4m3 [M, H] or [E, T, H], and scales [M, G] or [E, T, G] with G = ceil(H / groupSize); packed scales
 * have ceil(G / 4) in place of G. Column-major scales of [E, T, G] are E matrices one after the other: strides (C * G, 1, C), C = T or roundup(T, 4). Rows past
 * `counts` are zero in new tensors.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function siluMulQuantize(x: Tensor, options: SiluMulQuantizeOptions = {}): GroupQuantized {
  const { rows, hidden, outputShape, limit, ...batch } = requireGatedInput(x, options)
  const { groupSize = defaultGroupSize, numerics = 'vllm-contiguous', counts, out } = options
  const { stream = x.device.defaultStream, scaleFormat: format = 'f32' } = options
  const { scaleLayout: layout = defaultLayoutOf(format) } = options
  requireName('numerics', numerics, numericsNames)
  requireScaleKind(format, layout)
  if (numerics === 'vllm-masked' && x.dtype !== 'bf16') throw argumentError('x', 'bf16 for "vllm-masked"', x.toString())
  const scaleShape = { ...batch, rows, groups: numGroupsOf(hidden, groupSize), format, layout }
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype: 'fp8e4m3', shape: outputShape, device: x.device })
    requireScales('out.scales', out.scales, scaleShape, x.device)
    const inputs = counts === undefined ? { x } : { x, counts }
    requireDisjoint({ ...inputs, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: newRows(outputShape, x, 'fp8e4m3', counts !== undefined, stream),
    scales: allocateScales(scaleShape, stream, counts === undefined),
  }
  const code = numerics === 'vllm-masked' || numerics === 'f32' ? numerics : 'vllm'
  traceOperation('quant.siluMulQuantize', stream, x.byteLength + values.byteLength + scales.byteLength, () =>
    native().siluMulQuantize(
      stream.handle,
      x.handle,
      values.handle,
      scales.handle,
      counts?.handle ?? null,
      limit,
      groupSize,
      groupNumericsCodes[code],
      format !== 'f32',
    ),
  )
  return { values, scales }
}
