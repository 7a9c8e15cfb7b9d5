import {
  argumentError,
  type DType,
  dtypes,
  MoeEpError,
  requireAligned,
  requireInteger,
  requireTensor,
  type Stream,
  type Tensor,
} from '@moe-ep/core'
import { maxTopk } from '@moe-ep/layout'
import type { IntranodeBufferSizes } from './buffer-layout.js'
import type { DispatchPlan } from './dispatch-handle.js'
import type { DispatchOptions, GroupedDispatchOptions, SendOptions } from './dispatch-types.js'

/** dtypes that a row can have: it is moved, not computed with. */
export const payloadDtypes: readonly DType[] = ['bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8']

type Sizes = Required<IntranodeBufferSizes>

/** What a check needs to know of the buffer. */
export interface CheckContext {
  readonly sizes: Sizes
  readonly rank: number
  readonly numRanks: number
}

/** Bytes of one row. @throws ERR_MOE_EP_ARGUMENT when rows cannot be moved in 16-byte pieces or do not fit. */
export function requireRows(argument: string, x: Tensor, sizes: Sizes): number {
  const [, hidden] = x.shape as [number, number]
  const rowBytes = (hidden * dtypes[x.dtype].bits) / 8
  if (rowBytes % 16 !== 0 || rowBytes === 0)
    throw argumentError(argument, 'rows of a multiple of 16 bytes', `${rowBytes} bytes (${x})`)
  requireAligned(argument, x)
  const most = sizes.hidden * sizes.maxElementBytes
  if (rowBytes > most)
    throw argumentError(
      argument,
      `rows of at most ${most} bytes, for which the buffer was built`,
      `${rowBytes} bytes (${x})`,
    )
  return rowBytes
}

/** Checks everything that one rank can see of a dispatch by itself; nothing has been sent yet. */
export function checkDispatch(x: Tensor, options: DispatchOptions, context: CheckContext): void {
  checkSent(x, options, context)
  const { plan, topkIdx, topkWeights } = options
  if (plan === undefined) return checkRouting(x, options, context)
  if (topkIdx !== undefined || topkWeights !== undefined)
    throw argumentError('topkIdx', 'nothing beside a plan', 'both')
  checkPlan(plan, x, false, context)
}

/** The same for a grouped dispatch, whose ids are needed with a plan, too. */
export function checkGroupedDispatch(x: Tensor, options: GroupedDispatchOptions, context: CheckContext): void {
  checkSent(x, options, context)
  checkRouting(x, options, context)
  const { plan, topkIdx, fill = -1 } = options
  if (fill !== -1 && fill !== 'expert') throw argumentError('fill', "-1 or 'expert'", fill)
  if (plan === undefined) return
  checkPlan(plan, x, true, context)
  requireTensor('plan.slotRow', plan.slotRow, { dtype: 'i32', shape: topkIdx.shape })
  if (plan.numExperts !== options.numExperts)
    throw argumentError('numExperts', `${plan.numExperts}, as in the plan`, options.numExperts)
}

function checkSent(x: Tensor, { scales }: SendOptions, { sizes }: CheckContext): void {
  requireTensor('x', x, { dtype: payloadDtypes, shape: [null, null] })
  requireRows('x', x, sizes)
  const [numTokens] = x.shape as [number, number]
  if (numTokens > sizes.maxTokensPerRank) {
    throw argumentError('x', `at most ${sizes.maxTokensPerRank} tokens, for which the buffer was built`, x.toString())
  }
  if (scales === undefined) return
  requireTensor('scales', scales, { dtype: 'f32', shape: [numTokens, null] })
  requireInteger('scale columns', scales.shape[1], 1, sizes.maxScaleColumns)
}

function checkRouting(x: Tensor, options: DispatchOptions, { sizes }: CheckContext): void {
  const { topkIdx, topkWeights, numExperts, numChannels, expertAlignment } = options
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [x.shape[0]!, null] })
  requireInteger('topk', topkIdx.shape[1], 1, Math.min(maxTopk, sizes.maxTopk))
  if (topkWeights !== undefined) requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
  requireInteger('numExperts', numExperts, 1, sizes.maxExperts)
  if (numChannels !== undefined) requireInteger('numChannels', numChannels, 1, sizes.maxChannels)
  if (expertAlignment !== undefined) requireInteger('expertAlignment', expertAlignment, 1, 65536)
}

/** A plan may come from another buffer: its rows must have places in this one, too. All ranks hold the same counts. */
function checkPlan(plan: DispatchPlan, x: Tensor, grouped: boolean, { sizes, rank, numRanks }: CheckContext): void {
  if (plan.rank !== rank) throw argumentError('plan', `one that rank ${rank} made`, `one of rank ${plan.rank}`)
  if (plan.grouped !== grouped)
    throw argumentError('plan', grouped ? 'one of a grouped dispatch' : 'one of a plain dispatch', 'the other kind')
  if (plan.numTokens !== x.shape[0]) throw argumentError('x', `${plan.numTokens} tokens, as in the plan`, x.toString())
  requireTensor('plan.rankPrefixMatrix', plan.rankPrefixMatrix, { dtype: 'i32', shape: [numRanks, numRanks] })
  requireTensor('plan.numTokensPerRank', plan.numTokensPerRank, { dtype: 'i32', shape: [numRanks] })
  requireTensor('plan.sendHead', plan.sendHead, { dtype: 'i32', shape: [plan.numTokens, numRanks] })
  const { capacity } = sizes
  const received = grouped ? [plan.numRecvTokens] : (plan.hostCounts?.recvTokensPerRank ?? [plan.numRecvTokens])
  const overflowing = received.findIndex((rows) => rows > capacity)
  if (overflowing < 0) return
  throw new MoeEpError(
    'ERR_MOE_EP_CAPACITY',
    `intranode dispatch: rank ${grouped ? rank : overflowing} would receive ${received[overflowing]} rows, the buffer holds ${capacity}`,
  )
}

/** A dispatch that waits for counts cannot be recorded. */
export function requireNotCapturing(stream: Stream): void {
  if (!stream.capturing) return
  throw new MoeEpError(
    'ERR_MOE_EP_CAPTURE',
    'a dispatch that awaits its counts cannot be captured; use dispatchWorstCase',
  )
}
