import { argumentError, requireInteger, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import type { QuantScheme } from '@moe-ep/experts'
import { quantizePerTensor, quantizePerToken, quantizePerTokenGroup } from '@moe-ep/quant'

/**
 * How prepare quantises rows to fp8 e4m3, before they are sent.
 *
 * - `fp8-block`: one f32 scale for each `groupSize` (128) elements of a row, as `quantizePerTokenGroup` makes it.
 * - `fp8-token`: one f32 scale for each row, as `quantizePerToken` makes it.
 * - `fp8-tensor`: the given `scale`, f32 [1], for all rows, as `quantizePerTensor` applies it. Read when the work runs, the same on
 *   all ranks. A scale that is found is not offered: it would hang on which rows meet, and a token's result on its neighbours.
 */
export type InputQuant =
  | { readonly kind: 'fp8-block'; readonly groupSize?: number }
  | { readonly kind: 'fp8-token' }
  | { readonly kind: 'fp8-tensor'; readonly scale: Tensor }

/** Rows as they travel, with their scales if they have some. */
export interface InputRows {
  readonly hiddenStates: Tensor
  readonly scales: Tensor | undefined
  readonly groupSize: number | undefined
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function checkInputQuant(quant: InputQuant | undefined): void {
  if (quant === undefined) return
  switch (quant.kind) {
    case 'fp8-block':
      if (quant.groupSize !== undefined) requireInteger('quant.groupSize', quant.groupSize, 1)
      return
    case 'fp8-token':
      return
    case 'fp8-tensor':
      requireTensor('quant.scale', quant.scale, { dtype: 'f32', shape: [1] })
      return
    default:
      throw argumentError('quant', "kind 'fp8-block', 'fp8-token' or 'fp8-tensor'", (quant as InputQuant).kind)
  }
}

export function quantSchemeOf(quant: InputQuant | undefined): QuantScheme {
  return quant?.kind ?? 'none'
}

/** The rows quantised, or as they are: without `quant`, and when the experts want to do it themselves. */
export function quantizeInput(
  hiddenStates: Tensor,
  {
    quant,
    defer,
    stream,
  }: { readonly quant: InputQuant | undefined; readonly defer: boolean; readonly stream: Stream },
): InputRows {
  if (quant === undefined || defer) return { hiddenStates, scales: undefined, groupSize: undefined }
  const hidden = hiddenStates.shape[1]!
  switch (quant.kind) {
    case 'fp8-block': {
      const { groupSize = 128 } = quant
      const { values, scales } = quantizePerTokenGroup(hiddenStates, { groupSize, stream })
      return { hiddenStates: values, scales, groupSize }
    }
    case 'fp8-token': {
      const { values, scales } = quantizePerToken(hiddenStates, { stream })
      return { hiddenStates: values, scales, groupSize: hidden }
    }
    case 'fp8-tensor': {
      const { values, scale } = quantizePerTensor(hiddenStates, { scale: quant.scale, stream })
      return { hiddenStates: values, scales: columnOf(scale, hiddenStates.shape[0]!, stream), groupSize: hidden }
    }
  }
}

/** [rows, 1] of one number: experts need not know that all rows share it. */
function columnOf(scale: Tensor, rows: number, stream: Stream): Tensor {
  const { device } = scale
  const first = Tensor.zeros([rows, 1], 'i32', device)
  const ones = Tensor.from(new Float32Array(rows).fill(1), [rows, 1], 'f32', device)
  // A sum of one row with weight 1 is a copy.
  return unpermuteAndReduce(scale.reshape([1, 1]), {
    ...{ topkIdx: first, topkWeights: ones, inversePermutation: first, stream },
  })
}
