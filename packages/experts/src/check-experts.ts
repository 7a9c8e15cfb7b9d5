import { argumentError, type DType, requireInteger, requireTensor, type Tensor } from '@moe-ep/core'
import type { ExpertsArguments, ExpertWeights } from './experts.js'
import type { ExpertsProblem } from './workspaces.js'

export const floatDtypes: readonly DType[] = ['f32', 'bf16', 'f16']
export const defaultGroupSize = 128

/** Sizes of a call: E, M, N = 2I, K, and topk. */
export interface MoeProblemSize {
  readonly numLocalExperts: number
  readonly numTokens: number
  readonly gateAndUp: number
  readonly hidden: number
  readonly topk: number
}

/**
 * Sizes of a call from its tensors.
 *
 * @param hiddenStates [M, K], or batched [E_l, M, K].
 * @param topkIdx [M, topk]; of batched rows any number of tokens.
 * @throws ERR_MOE_EP_ARGUMENT when they do not fit together.
 */
export function moeProblemSize(hiddenStates: Tensor, weights: ExpertWeights, topkIdx: Tensor): MoeProblemSize {
  requireTensor('hiddenStates', hiddenStates)
  requireTensor('w13', weights.w13, { shape: [null, null, null] })
  const { shape } = hiddenStates
  if (shape.length !== 2 && shape.length !== 3)
    throw argumentError('hiddenStates', '[M, K] or [E_l, M, K]', hiddenStates.toString())
  const [numLocalExperts, gateAndUp] = weights.w13.shape as [number, number, number]
  const [numTokens, hidden] = shape.slice(-2) as [number, number]
  if (shape.length === 3) requireTensor('hiddenStates', hiddenStates, { shape: [numLocalExperts, null, null] })
  requireTensor('topkIdx', topkIdx, { shape: [shape.length === 2 ? numTokens : null, null] })
  return { numLocalExperts, numTokens, gateAndUp, hidden, topk: topkIdx.shape[1]! }
}

/** Sizes and dtypes of a call whose output has `outputDtype`. @throws ERR_MOE_EP_ARGUMENT. */
export function expertsProblem(
  args: Pick<ExpertsArguments, 'hiddenStates' | 'weights' | 'topkIdx' | 'scales' | 'tokens'>,
  outputDtype: DType,
): ExpertsProblem {
  const { hiddenStates, weights, topkIdx, scales, tokens } = args
  const { gateAndUp, ...sizes } = moeProblemSize(hiddenStates, weights, topkIdx)
  return {
    ...{ ...sizes, intermediate: Math.floor(gateAndUp / 2), outputDtype },
    ...{ inputDtype: hiddenStates.dtype, weightDtype: weights.w13.dtype, scaleColumns: scales?.shape.at(-1) ?? 0 },
    ...(tokens?.numTokensHost !== undefined && { numTokensHost: tokens.numTokensHost }),
  }
}

/** Checks rows, scales, output and weights of a call, in either format. @throws ERR_MOE_EP_ARGUMENT. */
export function checkExperts(args: ExpertsArguments, dimensions: 2 | 3): ExpertsProblem {
  const { output, hiddenStates, scales, weights, groupSize = defaultGroupSize, activation = 'silu' } = args
  if (activation !== 'silu') throw argumentError('activation', 'silu', activation)
  const quantized = scales !== undefined
  const dtype = quantized ? 'fp8e4m3' : floatDtypes
  requireTensor('hiddenStates', hiddenStates, { dtype, shape: dimensions === 2 ? [null, null] : [null, null, null] })
  const { shape } = hiddenStates
  const hidden = shape.at(-1)!
  requireTensor('output', output, { dtype: quantized ? floatDtypes : hiddenStates.dtype, shape })
  requireInteger('groupSize', groupSize, 1)
  if (quantized) requireScales(scales, shape, groupSize)
  requireTensor('w13', weights.w13, { dtype: floatDtypes, shape: [dimensions === 3 ? shape[0]! : null, null, hidden] })
  const [numLocalExperts, gateAndUp] = weights.w13.shape as [number, number]
  if (gateAndUp % 2 !== 0) throw argumentError('w13', 'gate rows and as many up rows', weights.w13.toString())
  requireTensor('w2', weights.w2, { dtype: weights.w13.dtype, shape: [numLocalExperts, hidden, gateAndUp / 2] })
  return expertsProblem(args, output.dtype)
}

/** Rows that are grouped have their scales moved with them, [M, G] f32; those that lie by expert already may have them in any form. */
function requireScales(scales: Tensor, rows: readonly number[], groupSize: number): void {
  const groups = Math.ceil(rows.at(-1)! / groupSize)
  const batched = rows.length === 3
  const packed = batched && scales?.dtype === 'i32'
  requireTensor('scales', scales, {
    dtype: packed ? 'i32' : 'f32',
    shape: [...rows.slice(0, -1), packed ? Math.ceil(groups / 4) : groups],
    contiguous: !batched,
  })
}
