import { argumentError, type Stream, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import type { PrepareArguments } from './prepare-and-finalize.js'

type Weighted = Pick<PrepareArguments, 'hiddenStates' | 'topkIdx' | 'topkWeights'>

/** @throws ERR_MOE_EP_ARGUMENT unless a token has one slot: a row cannot carry two weights. */
export function requireTop1(topkIdx: Tensor): void {
  const topk = topkIdx.shape[1]
  if (topk !== 1) throw argumentError('applyRouterWeightOnInput', 'true for top-1 routing only', `true for top-${topk}`)
}

/**
 * Rows times their router weights, and ones for the weights, so that whoever applies them later changes nothing.
 *
 * The weight is rounded to the dtype of the rows, then their product is, as if both were of that dtype. Zeros of the result
 * are positive; rows without an expert are zero.
 */
export function weightInput(args: Weighted & { readonly stream: Stream }): Weighted {
  const { hiddenStates, topkIdx, topkWeights, stream } = args
  requireTop1(topkIdx)
  const [rows] = topkIdx.shape as [number]
  const { device } = hiddenStates
  const ones = Tensor.from(new Float32Array(rows).fill(1), [rows, 1], 'f32', device)
  const ownRow = Tensor.from(
    Int32Array.from({ length: rows }, (_, row) => row),
    [rows, 1],
    'i32',
    device,
  )
  // A sum of one row with weight 1 converts its dtype: there, and exactly back.
  const identity = { topkIdx, topkWeights: ones, inversePermutation: ownRow, stream }
  const narrow = unpermuteAndReduce(topkWeights, { ...identity, outDtype: hiddenStates.dtype as 'bf16' })
  const weights = unpermuteAndReduce(narrow, { ...identity, outDtype: 'f32' })
  return {
    hiddenStates: unpermuteAndReduce(hiddenStates, { ...identity, topkWeights: weights }),
    topkIdx,
    topkWeights: ones,
  }
}
