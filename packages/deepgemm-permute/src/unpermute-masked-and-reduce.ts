import { argumentError, requireTensor, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce, type UnpermuteAndReduceOptions } from './unpermute-and-reduce.js'

/**
 * Brings expert rows in the masked layout back into token order: the weighted sum of each token's local slots, as
 * {@link unpermuteAndReduce} defines it.
 *
 * @param expertRows [numLocalExperts, maxTokens, H] of bf16, f16 or f32, rows evenly apart.
 * @param options as for the contiguous layout, with the `inversePermutation` of `permuteMasked`.
 * @returns [M, H], enqueued.
 * @throws as {@link unpermuteAndReduce}.
 */
export function unpermuteMaskedAndReduce(expertRows: Tensor, options: UnpermuteAndReduceOptions): Tensor {
  requireTensor('expertRows', expertRows, { shape: [null, null, null], contiguous: false })
  return unpermuteAndReduce(flattenExperts(expertRows), options)
}

/** The rows of all experts as one matrix, without a copy. */
function flattenExperts(rows: Tensor): Tensor {
  const [numExperts, maxTokens, hidden] = rows.shape as [number, number, number]
  const [expertStride, rowStride, columnStride] = rows.strides as [number, number, number]
  if (maxTokens > 1 && numExperts > 1 && expertStride !== maxTokens * rowStride) {
    throw argumentError('expertRows', 'rows evenly apart', `${rows} with strides [${rows.strides.join(', ')}]`)
  }
  const { memory, dtype, byteOffset } = rows
  const strides = [maxTokens > 1 ? rowStride : expertStride, columnStride]
  return new Tensor({ memory, dtype, byteOffset, shape: [numExperts * maxTokens, hidden], strides })
}
