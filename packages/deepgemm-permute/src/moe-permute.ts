import { argumentError, requireInteger, Tensor, traceOperation } from '@moe-ep/core'
import { maxRows, requireOutDisjoint } from './checks.js'
import { computeAlignedM } from './compute-aligned-m.js'
import { native } from './native.js'
import { mustZero, outTensor } from './out-tensor.js'
import { requireRoutedRows, type RoutedRowsOptions } from './routed-rows.js'
import { scalesFor } from './scales.js'

/** Memory for results of `moePermute`; R rows each, as {@link MoePermuted} says. */
export interface MoePermuteOut {
  /** Dtype of x, [R, H]. */
  readonly rows?: Tensor
  /** [R, columns], dtype and columns as `scales` and `packScales` say. Any strides. */
  readonly scales?: Tensor | undefined
  /** i32 [R]. */
  readonly mIndices?: Tensor
  /** i32 [M * K]. */
  readonly invPermutedIdx?: Tensor
}

export interface MoePermuteOptions extends RoutedRowsOptions {
  /** Every expert's rows start on a multiple of it; any integer from 1. @default 1: no padding */
  readonly alignment?: number
  /** Id of rows behind the last local expert's; any i32. @default -1 */
  readonly fillInvalidExpert?: number
  /** Where results go; those that are absent are allocated. Must not overlap the inputs. */
  readonly out?: MoePermuteOut
}

/** Rows sorted by expert. R is M * K without alignment, else the bound of `computeAlignedM`. */
export interface MoePermuted {
  /** Dtype of x, [R, H]: rows of local experts; those of foreign experts are not written. */
  readonly rows: Tensor
  /** [R, G], or i32 [R, ceil(G / 4)] when packed; undefined without scales. */
  readonly scales: Tensor | undefined
  /** i64 [numLocalExperts + 1]: first row of each local expert, then the rows of all of them, padding included. */
  readonly expertFirstTokenOffset: Tensor
  /**
   * i32 [M * K]: row of each slot. Slots without a local expert follow behind the last offset: foreign experts by global id,
   * token and slot, at the very end the slots without any expert.
   */
  readonly invPermutedIdx: Tensor
  /** i32 [R]: expert of each row, padding included; `fillInvalidExpert` behind the last offset. */
  readonly mIndices: Tensor
}

/**
 * Sorts the slots by expert, stably and with foreign experts last, and copies the rows of the local ones: the deterministic
 * sibling of `permute`, without padding unless asked for. {@link moeUnpermute} brings the rows back.
 *
 * @param x [M, H] of bf16, f16, f32, fp8e4m3, fp8e5m2 or u8. Any row stride, columns together.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id or a map entry out of
 * range. Nothing is written then.
 */
export function moePermute(x: Tensor, options: MoePermuteOptions): MoePermuted {
  const stream = requireRoutedRows(x, options)
  const { topkIdx, numLocalExperts, alignment = 1, fillInvalidExpert = -1, zeroPadding = false, out = {} } = options
  const { scales } = options
  const [numTokens, hidden] = x.shape as [number, number]
  requireInteger('alignment', alignment, 1, maxRows)
  requireInteger('fillInvalidExpert', fillInvalidExpert, -(2 ** 31), 2 ** 31 - 1)
  const topk = topkIdx.shape[1]!
  // Rounded up, so that the row numbers of foreign slots stay below it too.
  const numRows = numTokens === 0 ? 0 : computeAlignedM({ numTokens, topk, numLocalExperts, alignment })
  if (numRows > maxRows) throw argumentError('topkIdx', `up to ${maxRows} rows in the layout`, `${numRows} rows`)
  const { device } = x
  const i32 = { dtype: 'i32', device } as const
  const result: MoePermuted = {
    rows: outTensor('out.rows', out.rows, [numRows, hidden], x),
    scales: scalesFor(options, numTokens, [numRows], out.scales, { device, stream }),
    expertFirstTokenOffset: Tensor.empty([numLocalExperts + 1], 'i64', device),
    invPermutedIdx: outTensor('out.invPermutedIdx', out.invPermutedIdx, [numTokens * topk], i32),
    mIndices: outTensor('out.mIndices', out.mIndices, [numRows], i32),
  }
  requireOutDisjoint(out, result, { x, topkIdx, scales: options.scales, expertMap: options.expertMap })
  traceOperation('deepgemm-permute.moePermute', stream, undefined, () =>
    native().permute(
      stream.handle,
      x.handle,
      scales?.handle,
      topkIdx.handle,
      options.expertMap?.handle,
      undefined,
      result.rows.handle,
      result.scales?.handle,
      result.mIndices.handle,
      result.invPermutedIdx.handle,
      result.expertFirstTokenOffset.handle,
      undefined,
      Tensor.empty([numLocalExperts], 'i32', device).handle,
      {
        ...{ alignment, rowsPerExpert: 0, foreignLast: true },
        zeroRows: zeroPadding || mustZero(out.rows, stream),
        zeroScales: zeroPadding || mustZero(out.scales, stream),
        ...{ idInside: undefined, idBehind: fillInvalidExpert },
      },
    ),
  )
  return result
}
