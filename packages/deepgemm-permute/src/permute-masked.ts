import { argumentError, requireInteger, Tensor, traceOperation } from '@moe-ep/core'
import { maxRows, requireOutDisjoint } from './checks.js'
import { native } from './native.js'
import { mustZero, outTensor } from './out-tensor.js'
import { requireRoutedRows, type RoutedRowsOptions } from './routed-rows.js'
import { scalesFor } from './scales.js'

/** Memory for results of `permuteMasked`. */
export interface PermuteMaskedOut {
  /** Dtype of x, [numLocalExperts, maxTokens, H]. */
  readonly rows?: Tensor
  /** [numLocalExperts, maxTokens, columns], dtype and columns as `scales` and `packScales` say. Any strides. */
  readonly scales?: Tensor | undefined
  /** i32 [numLocalExperts]. */
  readonly maskedM?: Tensor
  /** i32 [M, K]. */
  readonly inversePermutation?: Tensor
}

export interface PermuteMaskedOptions extends RoutedRowsOptions {
  /** Rows that every local expert has. */
  readonly maxTokens: number
  /** Where results go; those that are absent are allocated. Must not overlap the inputs. */
  readonly out?: PermuteMaskedOut
}

/** Rows in the masked (batched) layout of grouped GEMMs. */
export interface PermutedMasked {
  /** Dtype of x, [numLocalExperts, maxTokens, H]: each expert's rows, then padding. */
  readonly rows: Tensor
  /** [numLocalExperts, maxTokens, G], or i32 [..., ceil(G / 4)] when packed; undefined without scales. */
  readonly scales: Tensor | undefined
  /** i32 [numLocalExperts]: rows of each expert that count. */
  readonly maskedM: Tensor
  /** i32 [M, K]: `expert * maxTokens + position` of each slot, -1 for slots without a local expert. */
  readonly inversePermutation: Tensor
}

/**
 * Copies every token's row once for each of its local experts, into that expert's own batch: what a masked grouped GEMM reads.
 *
 * Positions inside an expert are ordered by token, then by slot. Bytes are copied as they are.
 *
 * @param x [M, H] of bf16, f16, f32, fp8e4m3, fp8e5m2 or u8. Any row stride, columns together.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id or a map entry out of
 * range. ERR_MOE_EP_CAPACITY at the next await, with the fullest expert's count, when that is above `maxTokens`. Nothing is
 * written then.
 */
export function permuteMasked(x: Tensor, options: PermuteMaskedOptions): PermutedMasked {
  const stream = requireRoutedRows(x, options)
  const { topkIdx, numLocalExperts, maxTokens, zeroPadding = false, out = {} } = options
  requireInteger('maxTokens', maxTokens, 1, maxRows)
  if (numLocalExperts * maxTokens > maxRows) {
    throw argumentError('maxTokens', `up to ${maxRows} rows in the layout`, `${numLocalExperts * maxTokens} rows`)
  }
  const { device } = x
  const i32 = { dtype: 'i32', device } as const
  const lead = [numLocalExperts, maxTokens]
  const result: PermutedMasked = {
    rows: outTensor('out.rows', out.rows, [...lead, x.shape[1]!], x),
    scales: scalesFor(options, x.shape[0]!, lead, out.scales, { device, stream }),
    maskedM: outTensor('out.maskedM', out.maskedM, [numLocalExperts], i32),
    inversePermutation: outTensor('out.inversePermutation', out.inversePermutation, topkIdx.shape, i32),
  }
  requireOutDisjoint(out, result, { x, topkIdx, scales: options.scales, expertMap: options.expertMap })
  traceOperation('deepgemm-permute.permuteMasked', stream, undefined, () =>
    native().permute(
      stream.handle,
      x.handle,
      options.scales?.handle,
      topkIdx.handle,
      options.expertMap?.handle,
      undefined,
      result.rows.handle,
      result.scales?.handle,
      undefined,
      result.inversePermutation.handle,
      Tensor.empty([numLocalExperts + 1], 'i64', device).handle,
      undefined,
      result.maskedM.handle,
      {
        ...{ alignment: 1, rowsPerExpert: maxTokens, idInside: -1, idBehind: -1, foreignLast: false },
        zeroRows: zeroPadding || mustZero(out.rows, stream),
        zeroScales: zeroPadding || mustZero(out.scales, stream),
      },
    ),
  )
  return result
}
