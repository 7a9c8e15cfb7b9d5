import { argumentError, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { defaultGroupSize, numGroupsOf, requireDisjoint, requireName } from './groups.js'
import { groupNumericsCodes, native } from './native.js'
import {
  allocateScales,
  defaultLayoutOf,
  requireScaleKind,
  requireScales,
  type ScaleFormat,
  type ScaleLayout,
} from './scale-layout.js'

/** How a group's scale comes from its amax, and how it is applied; see {@link quantizePerTokenGroup}. */
export type GroupNumerics = 'vllm' | 'deepep'

/**
 * Numbers as fp8 with the scales of their groups: element [m, h] of a matrix stands for values[m, h] * scales[m, h / groupSize]. Blocks and
 * batches are held likewise, in the shapes that their operations name.
 */
export interface GroupQuantized {
  /** fp8e4m3 [M, H], or the shape of the input. */
  readonly values: Tensor
  /** f32 [M, ceil(H / groupSize)], the multipliers that dequantise; packed: i32 [M, ceil(ceil(H / groupSize) / 4)]. */
  readonly scales: Tensor
}

export interface QuantizePerTokenGroupOptions {
  /**
   * Consecutive elements of a row that share a scale, 1 or more; the last group of a row may be short.
   * @default 128
   */
  readonly groupSize?: number
  /** @default 'vllm' */
  readonly numerics?: GroupNumerics
  /**
   * The formats `'ue8m0'` and `'ue8m0-packed'` round each scale up to a power of two.
   * @default 'f32'
   */
  readonly scaleFormat?: ScaleFormat
  /** @default 'row-major'; 'column-major-tma' for packed scales */
  readonly scaleLayout?: ScaleLayout
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap `x` or each other; `scales` has the strides of the layout. */
  readonly out?: GroupQuantized
}

/**
 * Gives `x` as fp8 e4m3 with one scale for each group of consecutive elements of a row. The work is enqueued.
 *
 * Every step is one f32 operation, rounded to nearest even. With amax = the largest |x| of the group:
 *
 * - `'vllm'`, as vLLM's kernel: a = max(amax, 1e-10), scale = a / 448, value = e4m3(x / scale).
 * - `'deepep'`, as DeepEP's low-latency dispatch: a = max(amax, 1e-4), scale = a * (1 / 448), value = e4m3(x * (448 / a)).
 *
 * With scales in a ue8m0 format the scale is s = the smallest power of two that is not below that scale (`'vllm'`: nor below
 * 1e-10, so that zeros get 2^-33), and value = e4m3(x / s), which is exact up to the rounding to e4m3.
 *
 * e4m3 rounds to nearest even and saturates at 448; zeros keep their sign. A NaN element gives the code 0x7f and is passed
 * over in amax, so the rest of its group is quantised as if it were not there. An infinity makes the group's scale
 * infinity (packed: byte 255, the NaN of that format), its own code 0x7f and the codes of finite elements (signed) zero: the
 * whole group dequantises to NaN.
 *
 * Gaps between the columns of column-major scales and bytes of packed words past the last group are written as zero.
 *
 * @param x bf16, f16 or f32 [M, H], contiguous; M may be 0, H may not. Rows need no alignment.
 * @returns values fp8e4m3 [M, H] and the scales: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizePerTokenGroup(x: Tensor, options: QuantizePerTokenGroupOptions = {}): GroupQuantized {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [null, null] })
  const [rows, hidden] = x.shape as [number, number]
  if (hidden === 0) throw argumentError('x', 'rows of 1 element or more', x.toString())
  const { groupSize = defaultGroupSize, numerics = 'vllm', stream = x.device.defaultStream, out } = options
  const { scaleFormat: format = 'f32', scaleLayout: layout = defaultLayoutOf(format) } = options
  requireName('numerics', numerics, ['vllm', 'deepep'])
  requireScaleKind(format, layout)
  const scaleShape = { rows, groups: numGroupsOf(hidden, groupSize), format, layout }
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype: 'fp8e4m3', shape: x.shape, device: x.device })
    requireScales('out.scales', out.scales, scaleShape, x.device)
    requireDisjoint({ x, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: Tensor.empty(x.shape, 'fp8e4m3', x.device),
    scales: allocateScales(scaleShape, stream, true),
  }
  traceOperation('quant.quantizePerTokenGroup', stream, x.byteLength + values.byteLength + scales.byteLength, () =>
    native().quantizePerTokenGroup(
      stream.handle,
      x.handle,
      values.handle,
      scales.handle,
      groupSize,
      groupNumericsCodes[numerics],
      format !== 'f32',
      Infinity,
    ),
  )
  return { values, scales }
}
