import { argumentError, type DType, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireDisjoint } from './checks.js'
import { native } from './native.js'

/** Where weighted sums go. */
export interface ReduceOutput {
  /** [M, H] of bf16, f16 or f32, every element written. Must not overlap the inputs. */
  readonly out?: Tensor
  /** @default the dtype of `out`, else of the rows */
  readonly outDtype?: 'bf16' | 'f16' | 'f32'
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** Which rows each token adds, with checked tensors. */
interface ReduceInput extends ReduceOutput {
  readonly topkIdx?: Tensor
  readonly expertMap?: Tensor
  readonly topkWeights: Tensor
  readonly inversePermutation: Tensor
  readonly numValidRows?: Tensor | undefined
}

export const floatDtypes: readonly DType[] = ['bf16', 'f16', 'f32']

/** Checks the output and enqueues the sums. @throws ERR_MOE_EP_ARGUMENT. */
export function reduceRows(operation: string, expertRows: Tensor, input: ReduceInput): Tensor {
  const { outDtype = input.out?.dtype ?? expertRows.dtype, stream = expertRows.device.defaultStream } = input
  if (!floatDtypes.includes(outDtype)) throw argumentError('outDtype', floatDtypes.join(' or '), outDtype)
  const shape = [input.topkWeights.shape[0]!, expertRows.shape[1]!]
  if (input.out !== undefined) requireTensor('out', input.out, { dtype: outDtype, shape, device: expertRows.device })
  const { topkIdx, topkWeights, inversePermutation, expertMap } = input
  requireDisjoint({ out: input.out }, { expertRows, topkIdx, topkWeights, inversePermutation, expertMap })
  const out = input.out ?? Tensor.empty(shape, outDtype, expertRows.device)
  traceOperation(operation, stream, undefined, () =>
    native().unpermuteAndReduce(
      stream.handle,
      expertRows.handle,
      input.topkIdx?.handle,
      input.topkWeights.handle,
      input.inversePermutation.handle,
      input.expertMap?.handle,
      input.numValidRows?.handle,
      out.handle,
    ),
  )
  return out
}
