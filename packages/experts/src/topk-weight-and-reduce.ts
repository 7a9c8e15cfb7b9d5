import { argumentError, MoeEpError, requireInteger, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { permuteMasked, unpermuteAndReduce, unpermuteMaskedAndReduce } from '@moe-ep/deepgemm-permute'
import { copyRows } from './copy-rows.js'

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
  readonly kind: 'delegate' | 'none' | 'contiguous' | 'naiveBatched'
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

/** For experts whose output [M, K] is weighted and summed already: gives it back, or a copy in `output`. */
export const noWeightAndReduce: TopkWeightAndReduce = {
  kind: 'none',
  apply({ output, expertOutput, stream }) {
    if (output === undefined || output === expertOutput) return expertOutput
    copyRows(expertOutput, output, stream)
    return output
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
      throw argumentError(
        'expertOutput',
        `[${rows}, ${topk}, hidden] or [${rows * topk}, hidden]`,
        expertOutput.toString(),
      )
    }
    const slots = Int32Array.from({ length: rows * topk }, (_, slot) => slot)
    return unpermuteAndReduce(expertOutput.reshape([rows * topk, hidden]), {
      ...{ topkIdx, topkWeights, stream },
      inversePermutation: Tensor.wrap(slots, [rows, topk], 'i32', expertOutput.device),
      ...(output !== undefined && { out: output }),
    })
  },
}

/** Whose experts a batched layout holds. */
export interface NaiveBatchedOptions {
  /** The rank's local expert e of E_l is the global one E_l * rank + e. @default 0 */
  readonly rank?: number
  /** Experts of all ranks together. */
  readonly numExperts: number
}

/**
 * For batched experts, [E_l, T, K]: row i of an expert belongs to the i-th slot that names it, by token and slot. Ids are global.
 * The f32 sum over a token's local slots is taken in slot order and rounded once; rows that belong to no slot are never read.
 *
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function naiveBatchedWeightAndReduce({ rank = 0, numExperts }: NaiveBatchedOptions): TopkWeightAndReduce {
  requireInteger('rank', rank, 0)
  requireInteger('numExperts', numExperts, 1)
  return {
    kind: 'naiveBatched',
    apply({ output, expertOutput, topkIdx, topkWeights, stream }) {
      requireTensor('expertOutput', expertOutput, { dtype: ['f32', 'bf16', 'f16'], shape: [null, null, null] })
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
      const [numLocalExperts, maxTokens] = expertOutput.shape as [number, number]
      const { device } = expertOutput
      const map = batchedExpertMap({ rank, numExperts, numLocalExperts })
      const expertMap = Tensor.from(map, [numExperts], 'i32', device)
      const rows = topkIdx.shape[0]!
      // The same permutation as that of the rows, of one byte each: only where they went is wanted.
      const { inversePermutation } = permuteMasked(Tensor.zeros([rows, 1], 'u8', device), {
        ...{ topkIdx, numLocalExperts, maxTokens, expertMap, stream },
      })
      return unpermuteMaskedAndReduce(expertOutput, {
        ...{ topkIdx, topkWeights, inversePermutation, expertMap, stream },
        ...(output !== undefined && { out: output }),
      })
    },
  }
}

/** Global to local id of a rank that owns the experts from numLocalExperts * rank on, -1 for foreign ones. */
export function batchedExpertMap(
  options: Required<NaiveBatchedOptions> & { readonly numLocalExperts: number },
): Int32Array {
  const { rank, numExperts, numLocalExperts } = options
  const begin = numLocalExperts * rank
  return Int32Array.from({ length: numExperts }, (_, id) =>
    id >= begin && id < begin + numLocalExperts ? id - begin : -1,
  )
}
