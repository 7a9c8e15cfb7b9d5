import { argumentError, requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { defaultGroupSize, numGroupsOf } from './groups.js'
import { native } from './native.js'
import { requireReadableScales } from './scale-layout.js'

export interface DequantizePerTokenGroupOptions {
  /**
   * Consecutive elements of a row that share a scale, 1 or more; the last group of a row may be short.
   * @default 128
   */
  readonly groupSize?: number
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write [M, H], instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives values[m, h] * scales[m, h / groupSize]: one f32 product, then rounded to nearest even to `dtype`. The work is enqueued.
 *
 * bf16 and f16 overflow to infinity. NaN values and scales (packed: byte 255), and zero times infinity, give the canonical NaN.
 *
 * @param values fp8e4m3 [M, H], contiguous; M may be 0, H may not.
 * @param scales f32 [M, G] with G = ceil(H / groupSize), or packed exponents i32 [M, ceil(G / 4)]; any strides.
 * @returns [M, H] of `dtype`: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizePerTokenGroup(
  values: Tensor,
  scales: Tensor,
  options: DequantizePerTokenGroupOptions = {},
): Tensor {
  requireTensor('values', values, { dtype: 'fp8e4m3', shape: [null, null] })
  const [rows, hidden] = values.shape as [number, number]
  if (hidden === 0) throw argumentError('values', 'rows of 1 element or more', values.toString())
  const { groupSize = defaultGroupSize, stream = values.device.defaultStream } = options
  requireReadableScales('scales', scales, rows, numGroupsOf(hidden, groupSize), values.device)
  const out = dequantizedOutput(options, values.shape, { values, scales })
  traceOperation('quant.dequantizePerTokenGroup', stream, values.byteLength + scales.byteLength + out.byteLength, () =>
    native().dequantizePerTokenGroup(stream.handle, values.handle, scales.handle, out.handle, groupSize),
  )
  return out
}
