import {
  argumentError,
  type Device,
  type Event,
  requireAligned,
  requireInteger,
  requireStream,
  requireTensor,
  type Stream,
  type Tensor,
} from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import { type LowLatencyBufferSizes, requireHidden } from './buffer-layout.js'
import type {
  CallOptions,
  LowLatencyCombineOptions,
  LowLatencyDispatchOptions,
  LowLatencyHandle,
} from './call-types.js'
import { checkGlobalScale, type RowFormat } from './row-format.js'

/** What a call is checked against. */
export interface CallSite {
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  readonly numSms: number
  readonly sizes: Required<LowLatencyBufferSizes>
}

/** What all calls take, defaults filled in. */
export interface Call {
  readonly stream: Stream
  readonly timeoutMs: number
  readonly numSms: number
  readonly previousEvent: Event | undefined
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function callOf(site: CallSite, options: CallOptions): Call {
  const { device, group } = site
  const { stream = device.defaultStream, timeoutMs = site.timeoutMs, numSms = site.numSms } = options
  const { previousEvent, waitRecvCostStats } = options
  if (waitRecvCostStats !== undefined)
    requireTensor('waitRecvCostStats', waitRecvCostStats, { dtype: 'i64', shape: [group.worldSize], device })
  requireStream('stream', stream, device)
  requireInteger('timeoutMs', timeoutMs, 1)
  requireInteger('numSms', numSms, 1, 1024)
  return { stream, timeoutMs, numSms, previousEvent }
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function checkDispatch(
  site: CallSite,
  inputs: { readonly x: Tensor; readonly topkIdx: Tensor; readonly format: RowFormat },
  options: LowLatencyDispatchOptions,
): void {
  const { device, sizes, group } = site
  const { x, topkIdx, format } = inputs
  const { numExperts, topkWeights, layout = 'expert-major' } = options
  requireTensor('x', x, { dtype: 'bf16', shape: [null, null], device })
  requireAligned('x', x)
  const [numTokens, hidden] = x.shape as [number, number]
  requireInteger('tokens of x', numTokens, 0, sizes.maxTokensPerRank)
  requireHidden('hidden', hidden, format.hiddenMultiple, sizes.hidden)
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [numTokens, null], device })
  requireInteger('topk', topkIdx.shape[1], 1, sizes.maxTopk)
  checkGlobalScale(format, options, device)
  if (!['expert-major', 'rank-major'].includes(layout))
    throw argumentError('layout', "'expert-major' or 'rank-major'", layout)
  if (sizes.protocol === 'expert') {
    if (layout === 'rank-major') throw argumentError('layout', "'expert-major' with protocol 'expert'", layout)
    if (topkWeights !== undefined)
      throw argumentError('topkWeights', "nothing with protocol 'expert': combine takes them", topkWeights)
  }
  if (sizes.masks !== 'none' && layout !== 'rank-major' && topkWeights === undefined)
    throw argumentError('topkWeights', 'a Tensor where ranks may be masked', topkWeights)
  if (topkWeights !== undefined)
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape, device })
  // Rows of all experts of a rank are numbered by i32.
  const rows = group.worldSize * sizes.maxTokensPerRank
  requireInteger('numExperts', numExperts, 1, Math.floor((2 ** 31 - 1) / Math.max(rows, 1)) * group.worldSize)
}

/** What combine is given beside its options. */
export interface CombineInputs {
  readonly x: Tensor
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor | undefined
  readonly handle: LowLatencyHandle
  /** One row of each rank comes home, with weights applied. */
  readonly weighted: boolean
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function checkCombine({ device }: CallSite, inputs: CombineInputs, { out }: LowLatencyCombineOptions): void {
  const { x, topkIdx, topkWeights, weighted } = inputs
  const { hidden, topk, numTokens, srcInfo } = inputs.handle
  requireTensor('x', x, { dtype: 'bf16', shape: [...srcInfo.shape, hidden], device })
  requireAligned('x', x)
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [numTokens, topk], device })
  if (weighted !== (topkWeights === undefined)) {
    const expected = weighted ? 'nothing: they were applied where experts are' : 'a Tensor'
    throw argumentError('topkWeights', expected, topkWeights)
  }
  if (topkWeights !== undefined)
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape, device })
  if (out === undefined) return
  requireTensor('out', out, { dtype: 'bf16', shape: [numTokens, hidden], device })
  requireAligned('out', out)
}
