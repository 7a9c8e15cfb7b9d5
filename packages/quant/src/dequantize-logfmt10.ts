import { requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { logFmt10Shapes } from './logfmt.js'
import { native } from './native.js'

export interface DequantizeLogFmt10Options {
  /** Elements of a row, which its bytes alone do not tell. */
  readonly hidden: number
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write [M, H], instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives the matrix that LogFMT-10 codes and ranges stand for (see `quantizeLogFmt10`), rounded to nearest even to `dtype`. The
 * work is enqueued. Ranges that no quantisation makes (a NaN, an infinity, a smallest above the largest) give what the arithmetic
 * gives; every NaN is canonical.
 *
 * @param codes u8 [M, logFmt10RowBytes(hidden)], contiguous.
 * @param ranges bf16 [M, ceil(hidden / 128), 2], contiguous.
 * @returns [M, hidden] of `dtype`: `out` where given.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizeLogFmt10(codes: Tensor, ranges: Tensor, options: DequantizeLogFmt10Options): Tensor {
  requireTensor('codes', codes, { dtype: 'u8', shape: [null, null] })
  const { hidden, stream = codes.device.defaultStream } = options
  const rows = codes.shape[0]!
  const shapes = logFmt10Shapes(rows, hidden)
  requireTensor('codes', codes, { shape: shapes.codes })
  requireTensor('ranges', ranges, { dtype: 'bf16', shape: shapes.ranges, device: codes.device })
  const out = dequantizedOutput(options, [rows, hidden], { codes, ranges })
  traceOperation('quant.dequantizeLogFmt10', stream, codes.byteLength + ranges.byteLength + out.byteLength, () =>
    native().dequantizeLogFmt10(stream.handle, codes.handle, ranges.handle, out.handle),
  )
  return out
}
