import { type Device, type DType, dtypes, Tensor } from '@moe-ep/core'
import { defaultNumChannels, linearPlacement } from '@moe-ep/layout'
import type { DispatchPlan } from './dispatch-handle.js'

/** What decides the shapes of a plan. */
export interface PlanShape {
  readonly device: Device
  readonly rank: number
  readonly numRanks: number
  readonly numTokens: number
  readonly numExperts: number
  readonly numChannels: number | undefined
  readonly maxChannels: number
  readonly expertAlignment: number
  /** Of a grouped dispatch: slots of a token. */
  readonly groupedTopk: number | undefined
}

/** A plan whose tensors are still to be filled by the notify kernel. */
export function emptyPlan(shape: PlanShape): DispatchPlan {
  const { device, rank, numRanks, numTokens, numExperts, maxChannels, expertAlignment, groupedTopk } = shape
  const numChannels = shape.numChannels ?? Math.min(defaultNumChannels, maxChannels)
  const { begin, end } = linearPlacement(numExperts, numRanks).rangeOf(rank)
  const zeros = (sizes: readonly number[], dtype: DType): Tensor => Tensor.zeros(sizes, dtype, device)
  return {
    ...{
      rank,
      grouped: groupedTopk !== undefined,
      numTokens,
      numExperts,
      numChannels,
      expertAlignment,
      numRecvTokens: 0,
    },
    numTokensPerRank: zeros([numRanks], 'i32'),
    numTokensPerExpert: zeros([numExperts], 'i32'),
    isTokenInRank: zeros([numTokens, numRanks], 'bool'),
    rankPrefixMatrix: zeros([numRanks, numRanks], 'i32'),
    channelPrefixMatrix: zeros([numRanks, numChannels], 'i32'),
    recvChannelPrefixMatrix: zeros([numRanks, numChannels], 'i32'),
    sendHead: zeros([numTokens, numRanks], 'i32'),
    numRecvTokensPerExpert: zeros([end - begin], 'i32'),
    numRecvSelections: zeros([end - begin], 'i32'),
    slotRow: groupedTopk === undefined ? undefined : zeros([numTokens, groupedTopk], 'i32'),
  }
}

/** The plan with the number of rows, which can be read once the counts are there. */
export function settledPlan(plan: DispatchPlan): DispatchPlan {
  const numRanks = plan.numTokensPerRank.numel
  const plain = Number(plan.rankPrefixMatrix.data[(numRanks - 1) * numRanks + plan.rank])
  return { ...plan, numRecvTokens: plan.grouped ? sum(plan.numRecvTokensPerExpert) : plain }
}

/** What a dispatch sends, as far as ranks must agree on it. */
export interface SharedCall {
  /** Number of the dispatch, counted by each rank. */
  readonly call: number
  readonly cached: boolean
  readonly x: Tensor
  readonly scales: Tensor | undefined
  readonly topkIdx: Tensor | undefined
  readonly hasWeights: boolean
}

/** Arguments that all ranks must agree on, in the order of the native record. */
export function sharedArguments(shared: SharedCall, plan: DispatchPlan): number[] {
  const { call, cached, x, scales, topkIdx, hasWeights } = shared
  return [
    ...[call, Number(cached), (x.shape[1]! * dtypes[x.dtype].bits) / 8, dtypes[x.dtype].code],
    ...[scales?.shape[1] ?? 0, topkIdx?.shape[1] ?? 0, topkIdx === undefined ? 0 : dtypes[topkIdx.dtype].bits / 8],
    ...[plan.numExperts, plan.numChannels, plan.expertAlignment, Number(hasWeights), Number(plan.grouped)],
    0, // the digest of a plan is the kernel's to fill in
  ]
}

/** Sum of counts that lie where the host can read them. */
export function sum(counts: Tensor): number {
  return Array.from(counts.data, Number).reduce((total, count) => total + count, 0)
}
