import { argumentError, MoeEpError, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce } from '@moe-ep/deepgemm-permute'

/** What a weighting strategy works on. */
export interface WeightAndReduceArguments {
  /** Result [M, K]; allocated when absent. */
  readonly output?: Tensor
  /** What the experts gave, in the shape that the strategy asks for. */
  readonly expertOutput: Tensor
  /** i32 or i64 [M, topk]; -1 contributes nothing. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  readonly stream: Stream
}

/** Who multiplies expert rows by the router's weights and sums them over the top-k slots. */
export interface TopkWeightAndReduce {
  readonly kind: 'delegate' | 'none' | 'contiguous'
  /** The weighted sum [M, K], enqueued. */
  apply(args: WeightAndReduceArguments): Tensor
}

/** Leaves the choice to prepare/finalize. Applying it is an error. */
export const delegateWeightAndReduce: TopkWeightAndReduce = {
  kind: 'delegate',
  apply() {
    throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'a delegated weight-and-reduce must be replaced by prepare/finalize')
  },
}

/** For experts whose output [M, K] is weighted and summed already: gives it back. */
export const noWeightAndReduce: TopkWeightAndReduce = {
  kind: 'none',
  apply({ output, expertOutput }) {
    if (output !== undefined && output !== expertOutput) {
      throw argumentError('output', 'nothing, or the expert output itself', output.toString())
    }
    return expertOutput
  },
}

/** For experts that leave one row for each slot, [M, topk, K] or [M * topk, K]: f32 sum in slot order, rounded once. */
export const contiguousWeightAndReduce: TopkWeightAndReduce = {
  kind: 'contiguous',
  apply({ output, expertOutput, topkIdx, topkWeights, stream }) {
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    const [rows, topk] = topkIdx.shape as [number, number]
    const hidden = expertOutput.shape.at(-1)!
    if (expertOutput.numel !== rows * topk * hidden) {
      throw argumentError('expertOutput', `[${rows}, ${topk}, hidden] or [${rows * topk}, hidden]`, expertOutput.toString())
    }
    const slots = Int32Array.from({ length: rows * topk }, (_, slot) => slot)
    return unpermuteAndReduce(expertOutput.reshape([rows * topk, hidden]), {
      ...{ topkIdx, topkWeights, stream },
      inversePermutation: Tensor.wrap(slots, [rows, topk], 'i32', expertOutput.device),
      ...(output !== undefined && { out: output }),
    })
  },
}
