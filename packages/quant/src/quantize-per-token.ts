import { argumentError, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireDisjoint } from './groups.js'
import { groupNumericsCodes, native } from './native.js'
import type { GroupQuantized } from './quantize-per-token-group.js'

export interface QuantizePerTokenOptions {
  /**
   * Largest amax that counts; larger elements saturate.
   * @default no bound
   */
  readonly scaleUpperBound?: number
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap `x` or each other. */
  readonly out?: GroupQuantized
}

/**
 * Gives `x` as fp8 e4m3 with one f32 scale for each row. The work is enqueued.
 *
 * As vLLM's dynamic quantisation per token, with amax = the largest |x| of the row: scale = max(min(amax, scaleUpperBound) / 448, 1 / (448 * 512)), value = e4m3(x / scale);
 * every step is one f32 operation, e4m3 rounds to nearest even and saturates at 448. A NaN element gives the code 0x7f and is
 * passed over in amax. An infinity makes the scale infinity and dequantises with its whole row to NaN, unless there is an upper
 * bound: then it saturates.
 *
 * `dequantizePerTokenGroup` with `groupSize` H is the way back.
 *
 * @param x bf16, f16 or f32 [M, H], contiguous; M may be 0, H may not.
 * @returns values fp8e4m3 [M, H] and scales f32 [M, 1]: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizePerToken(x: Tensor, options: QuantizePerTokenOptions = {}): GroupQuantized {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [null, null] })
  const [rows, hidden] = x.shape as [number, number]
  if (hidden === 0) throw argumentError('x', 'rows of 1 element or more', x.toString())
  const { scaleUpperBound = Infinity, stream = x.device.defaultStream, out } = options
  if (!(scaleUpperBound > 0)) throw argumentError('scaleUpperBound', 'a positive number', scaleUpperBound)
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype: 'fp8e4m3', shape: x.shape, device: x.device })
    requireTensor('out.scales', out.scales, { dtype: 'f32', shape: [rows, 1], device: x.device })
    requireDisjoint({ x, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: Tensor.empty(x.shape, 'fp8e4m3', x.device),
    scales: Tensor.empty([rows, 1], 'f32', x.device),
  }
  traceOperation('quant.quantizePerToken', stream, x.byteLength + values.byteLength + scales.byteLength, () =>
    native().quantizePerTokenGroup(
      stream.handle,
      x.handle,
      values.handle,
      scales.handle,
      hidden,
      groupNumericsCodes.perToken,
      false,
      scaleUpperBound,
    ),
  )
  return { values, scales }
}
