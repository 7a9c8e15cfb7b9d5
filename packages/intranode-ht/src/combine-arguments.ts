import { argumentError, type Device, requireAligned, requireInteger, requireTensor, Tensor } from '@moe-ep/core'
import type { IntranodeBufferSizes } from './buffer-layout.js'
import { requireRows } from './dispatch-arguments.js'
import type { DispatchPlan } from './dispatch-handle.js'
import type { CombineOptions } from './dispatch-types.js'

/** What a combine is checked against. */
export interface CombineSite {
  readonly device: Device
  readonly sizes: Required<IntranodeBufferSizes>
}

/** Where results go: the caller's `out`, or new memory. @throws ERR_MOE_EP_ARGUMENT, also for rows that cannot be combined. */
export function combineOutput(
  { device, sizes }: CombineSite,
  x: Tensor,
  plan: DispatchPlan,
  { out }: { readonly out?: Tensor },
): Tensor {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [plan.numRecvTokens, null] })
  requireRows('x', x, sizes)
  const shape = [plan.numTokens, x.shape[1]!]
  const combinedX = out ?? Tensor.empty(shape, x.dtype, device)
  requireTensor('out', combinedX, { dtype: x.dtype, shape })
  requireAligned('out', combinedX)
  return combinedX
}

/** What is summed beside the rows: the biases, in order. @throws ERR_MOE_EP_ARGUMENT, also for weights that cannot go home. */
export function combineBiases(
  { sizes }: CombineSite,
  combinedX: Tensor,
  plan: DispatchPlan,
  { topkWeights, bias = [] }: CombineOptions,
): readonly Tensor[] {
  if (topkWeights !== undefined) {
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: [plan.numRecvTokens, null] })
    requireInteger('topk', topkWeights.shape[1], 1, sizes.maxTopk)
  }
  const biases = [bias].flat()
  if (biases.length > 2) throw argumentError('bias', 'at most two', biases.length)
  for (const one of biases) {
    requireTensor('bias', one, { dtype: combinedX.dtype, shape: combinedX.shape })
    requireAligned('bias', one)
  }
  return biases
}
