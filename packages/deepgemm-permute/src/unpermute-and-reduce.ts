import { requireTensor, type Tensor } from '@moe-ep/core'
import { requireExpertMap, requireRows, requireTopkIdx } from './checks.js'
import { floatDtypes, type ReduceOutput, reduceRows } from './reduce-rows.js'

export interface UnpermuteAndReduceOptions extends ReduceOutput {
  /** i32 or i64 [M, K]: the ids that `permute` was given. They decide which slots are local. */
  readonly topkIdx: Tensor
  /** f32 [M, K]. Pass ones when the weights were applied before. Those of slots that are not local are not read. */
  readonly topkWeights: Tensor
  /** i32 [M, K]: row of each local slot; other entries are not read. */
  readonly inversePermutation: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. Without it every id but -1 is local. */
  readonly expertMap?: Tensor
}

/**
 * Brings expert rows back into token order: the weighted sum of each token's local slots.
 *
 * `out[t]` starts at +0 in f32; for each local slot in slot order `weight * row` is rounded to f32, added, and rounded to f32
 * again; the sum is rounded once to the output dtype, NaN is canonical. Tokens without local slots are exactly zero.
 *
 * @param expertRows [rows, H] of bf16, f16 or f32. Any row stride, columns together.
 * @returns [M, H], enqueued.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id, a map entry or a row
 * out of range. Nothing is written then.
 */
export function unpermuteAndReduce(expertRows: Tensor, options: UnpermuteAndReduceOptions): Tensor {
  requireRows('expertRows', expertRows, floatDtypes)
  const { topkIdx, topkWeights, inversePermutation, expertMap } = options
  const { device } = expertRows
  requireTopkIdx(topkIdx, null, device)
  const { shape } = topkIdx
  requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape, device })
  requireTensor('inversePermutation', inversePermutation, { dtype: 'i32', shape, device })
  requireExpertMap(expertMap, device)
  return reduceRows('deepgemm-permute.unpermuteAndReduce', expertRows, options)
}
