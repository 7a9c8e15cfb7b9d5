import { argumentError, requireInteger, type Stream, type Tensor } from '@moe-ep/core'
import type { QuantScheme } from '@moe-ep/experts'
import { quantizePerTokenGroup } from '@moe-ep/quant'

/** How prepare quantises rows. */
export interface InputQuant {
  /** fp8 e4m3 with an f32 scale for each group of a row. */
  readonly kind: 'fp8-block'
  /** Elements that share a scale. @default 128 */
  readonly groupSize?: number
}

/** Rows as they travel, with their scales if they have some. */
export interface InputRows {
  readonly hiddenStates: Tensor
  readonly scales: Tensor | undefined
  readonly groupSize: number | undefined
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function checkInputQuant(quant: InputQuant | undefined): void {
  if (quant === undefined) return
  if (quant.kind !== 'fp8-block') throw argumentError('quant', "kind 'fp8-block'", quant.kind)
  if (quant.groupSize !== undefined) requireInteger('quant.groupSize', quant.groupSize, 1)
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
  const { groupSize = 128 } = quant
  const { values, scales } = quantizePerTokenGroup(hiddenStates, { groupSize, stream })
  return { hiddenStates: values, scales, groupSize }
}
