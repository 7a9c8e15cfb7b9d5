import { argumentError, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireDisjoint } from './groups.js'
import { logFmt10Shapes } from './logfmt.js'
import { native } from './native.js'

/** A matrix in LogFMT-10. */
export interface LogFmt10Quantized {
  /** u8 [M, logFmt10RowBytes(H)]: 10 bits an element, lowest bits first; each group of 128 begins at a byte. */
  readonly codes: Tensor
  /** bf16 [M, ceil(H / 128), 2]: the smallest and the largest finite magnitude of a group that is not zero; 0 where there is none. */
  readonly ranges: Tensor
}

export interface QuantizeLogFmt10Options {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap `x` or each other. */
  readonly out?: LogFmt10Quantized
}

/**
 * Gives `x` in LogFMT-10: for each 128 elements of a row, 10-bit codes on a logarithmic scale. The work is enqueued.
 *
 * Bit 9 of a code is the sign and bits 0 to 8 are c: 0 for zero, else the magnitude 2^(low + (c - 1) * step). With amin and amax the
 * group's range: high = log2(amax), low = max(log2(amin), high - 32), step = (high - low) / 510; c is the nearest, with
 * borders in the arithmetic middle: c = floor((log2|x| - low) * (1 / step) + (2 - log2((1 + 2^step) * 0.5) * (1 / step))),
 * clamped to [0, 511]; 1 where step is 0. Every step is one f32 operation, with core's `log2F32` and `exp2F32`.
 *
 * What comes back is within (2^step - 1) / 2 of the magnitude, 2.3 % at most (0.4 % for a range of 6 binades), beside its
 * rounding to the dtype; magnitudes below amax * 2^-32 come back within that. Zeros lose their sign. NaN and infinities
 * get the code 0x200, which comes back as NaN, and do not touch the rest of their group.
 *
 * @param x bf16 [M, H], contiguous; M may be 0, H may not.
 * @returns codes and ranges: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function quantizeLogFmt10(x: Tensor, options: QuantizeLogFmt10Options = {}): LogFmt10Quantized {
  requireTensor('x', x, { dtype: 'bf16', shape: [null, null] })
  const [rows, hidden] = x.shape as [number, number]
  if (hidden === 0) throw argumentError('x', 'rows of 1 element or more', x.toString())
  const { stream = x.device.defaultStream, out } = options
  const shapes = logFmt10Shapes(rows, hidden)
  if (out !== undefined) {
    requireTensor('out.codes', out.codes, { dtype: 'u8', shape: shapes.codes, device: x.device })
    requireTensor('out.ranges', out.ranges, { dtype: 'bf16', shape: shapes.ranges, device: x.device })
    requireDisjoint({ x, 'out.codes': out.codes, 'out.ranges': out.ranges })
  }
  const { codes, ranges } = out ?? {
    codes: Tensor.empty(shapes.codes, 'u8', x.device),
    ranges: Tensor.empty(shapes.ranges, 'bf16', x.device),
  }
  traceOperation('quant.quantizeLogFmt10', stream, x.byteLength + codes.byteLength + ranges.byteLength, () =>
    native().quantizeLogFmt10(stream.handle, x.handle, codes.handle, ranges.handle),
  )
  return { codes, ranges }
}
