import { argumentError, requireTensor, type Tensor } from '@moe-ep/core'
import { requireRows } from './checks.js'
import { floatDtypes, type ReduceOutput, reduceRows } from './reduce-rows.js'

export interface MoeUnpermuteOptions extends ReduceOutput {
  /** f32 [M, K]. Pass ones when the weights were applied before. Those of slots that are not local are not read. */
  readonly topkWeights: Tensor
  /** i32 [M * K]: row of each slot. */
  readonly invPermutedIdx: Tensor
  /**
   * i64 [numLocalExperts + 1]: rows from its last entry on belong to slots without a local expert, which add nothing. Without it
   * every slot is local.
   */
  readonly expertFirstTokenOffset?: Tensor
}

/**
 * Brings the rows of `moePermute` back into token order: the weighted sum of each token's local slots, computed as
 * `unpermuteAndReduce` does.
 *
 * @param permutedRows [R, H] of bf16, f16 or f32. Any row stride, columns together.
 * @returns [M, H], enqueued.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for a row out of range. Nothing is
 * written then.
 */
export function moeUnpermute(permutedRows: Tensor, options: MoeUnpermuteOptions): Tensor {
  requireRows('permutedRows', permutedRows, floatDtypes)
  const { topkWeights, invPermutedIdx, expertFirstTokenOffset } = options
  const { device } = permutedRows
  requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: [null, null], device })
  requireTensor('invPermutedIdx', invPermutedIdx, { dtype: 'i32', shape: [topkWeights.numel], device })
  if (expertFirstTokenOffset !== undefined) {
    requireTensor('expertFirstTokenOffset', expertFirstTokenOffset, { dtype: 'i64', shape: [null], device })
    if (expertFirstTokenOffset.numel === 0) {
      throw argumentError('expertFirstTokenOffset', 'an offset or more', expertFirstTokenOffset)
    }
  }
  return reduceRows('deepgemm-permute.moeUnpermute', permutedRows, {
    ...options,
    inversePermutation: invPermutedIdx,
    numValidRows: expertFirstTokenOffset && lastOf(expertFirstTokenOffset),
  })
}

function lastOf(tensor: Tensor): Tensor {
  return tensor.slice(tensor.shape[0]! - 1, tensor.shape[0]!)
}
