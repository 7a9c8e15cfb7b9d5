import { argumentError, type DType, dtypes, MoeEpError, requireInteger, requireTensor, type Tensor } from '@moe-ep/core'
import { maxTopk } from '@moe-ep/layout'
import type { IntranodeBufferSizes } from './buffer-layout.js'
import type { DispatchPlan } from './dispatch-handle.js'
import type { DispatchOptions } from './intranode-buffer.js'

/** dtypes that a row can have: it is moved, not computed with. */
export const payloadDtypes: readonly DType[] = ['bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8']

/** Bytes of one row. @throws ERR_MOE_EP_ARGUMENT when rows cannot be moved in 16-byte pieces or do not fit. */
export function requireRows(argument: string, x: Tensor, sizes: Required<IntranodeBufferSizes>): number {
  const [, hidden] = x.shape as [number, number]
  const rowBytes = (hidden * dtypes[x.dtype].bits) / 8
  if (rowBytes % 16 !== 0 || rowBytes === 0) throw argumentError(argument, 'rows of a multiple of 16 bytes', `${rowBytes} bytes (${x})`)
  const most = sizes.hidden * sizes.maxElementBytes
  if (rowBytes > most) throw argumentError(argument, `rows of at most ${most} bytes, for which the buffer was built`, `${rowBytes} bytes (${x})`)
  return rowBytes
}

/** Checks everything that one rank can see by itself; nothing has been sent yet. */
export function checkDispatch(
  x: Tensor,
  options: DispatchOptions,
  sizes: Required<IntranodeBufferSizes>,
  numRanks: number,
): void {
  requireTensor('x', x, { dtype: payloadDtypes, shape: [null, null] })
  requireRows('x', x, sizes)
  const [numTokens] = x.shape as [number, number]
  if (numTokens > sizes.maxTokensPerRank) {
    throw argumentError('x', `at most ${sizes.maxTokensPerRank} tokens, for which the buffer was built`, x.toString())
  }
  const { scales, plan, topkIdx, topkWeights } = options
  if (scales !== undefined) {
    requireTensor('scales', scales, { dtype: 'f32', shape: [numTokens, null] })
    requireInteger('scale columns', scales.shape[1], 1, sizes.maxScaleColumns)
  }
  if (plan !== undefined) {
    if (topkIdx !== undefined || topkWeights !== undefined) throw argumentError('topkIdx', 'nothing beside a plan', 'both')
    if (plan.numTokens !== numTokens) throw argumentError('x', `${plan.numTokens} tokens, as in the plan`, x.toString())
    checkPlan(plan, sizes, numRanks)
    return
  }
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [numTokens, null] })
  requireInteger('topk', topkIdx.shape[1], 1, Math.min(maxTopk, sizes.maxTopk))
  if (topkWeights !== undefined) requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
  requireInteger('numExperts', options.numExperts, 1, sizes.maxExperts)
  if (options.numChannels !== undefined) requireInteger('numChannels', options.numChannels, 1, sizes.maxChannels)
  if (options.expertAlignment !== undefined) requireInteger('expertAlignment', options.expertAlignment, 1, 65536)
}

/** A plan may come from another buffer: its rows must have places in this one, too. All ranks hold the same counts. */
function checkPlan(plan: DispatchPlan, { capacity }: Required<IntranodeBufferSizes>, numRanks: number): void {
  requireTensor('plan.rankPrefixMatrix', plan.rankPrefixMatrix, { dtype: 'i32', shape: [numRanks, numRanks] })
  requireTensor('plan.sendHead', plan.sendHead, { dtype: 'i32', shape: [plan.numTokens, numRanks] })
  const received = plan.rankPrefixMatrix.data.subarray((numRanks - 1) * numRanks) as Int32Array
  const rank = received.findIndex((rows) => rows > capacity)
  if (rank < 0) return
  throw new MoeEpError(
    'ERR_MOE_EP_CAPACITY',
    `intranode dispatch: rank ${rank} would receive ${received[rank]} rows, the buffer holds ${capacity}`,
  )
}
