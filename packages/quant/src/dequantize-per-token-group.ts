import { argumentError, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { defaultGroupSize, numGroupsOf, requireDisjoint } from './groups.js'
import { native } from './native.js'

/** Element types that dequantised rows can have. */
export type DequantizedDType = 'f32' | 'f16' | 'bf16'

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
 * bf16 and f16 overflow to infinity. NaN values and scales, and zero times infinity, give the canonical NaN.
 *
 * @param values fp8e4m3 [M, H], contiguous; M may be 0, H may not.
 * @param scales f32 [M, ceil(H / groupSize)], contiguous.
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
  requireTensor('scales', scales, { dtype: 'f32', shape: [rows, numGroupsOf(hidden, groupSize)] })
  if (options.out !== undefined) {
    requireTensor('out', options.out, { dtype: options.dtype ?? dequantizedDTypes, shape: values.shape })
    requireDisjoint({ values, out: options.out })
    requireDisjoint({ scales, out: options.out })
  }
  const dtype = options.dtype ?? options.out?.dtype ?? 'bf16'
  if (!(dequantizedDTypes as readonly string[]).includes(dtype)) {
    throw argumentError('dtype', dequantizedDTypes.join(' or '), dtype)
  }
  const out = options.out ?? Tensor.zeros(values.shape, dtype, values.device)
  traceOperation('quant.dequantizePerTokenGroup', stream, values.byteLength + scales.byteLength + out.byteLength, () =>
    native().dequantizePerTokenGroup(stream.handle, values.handle, scales.handle, out.handle, groupSize),
  )
  return out
}

const dequantizedDTypes = ['f32', 'f16', 'bf16'] as const
