import { CudaDevice, type Device, type DType, dtypes, getDevice, type Memory, Tensor } from '@moe-ep/core'
import { defaultNumChannels, linearPlacement } from '@moe-ep/layout'
import type { IntranodeBufferSizes } from './buffer-layout.js'
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
  const empty = (sizes: readonly number[], dtype: DType): Tensor => Tensor.empty(sizes, dtype, device)
  return {
    ...{
      rank,
      grouped: groupedTopk !== undefined,
      numTokens,
      numExperts,
      numChannels,
      expertAlignment,
      numRecvTokens: 0,
      hostCounts: undefined,
    },
    numTokensPerRank: empty([numRanks], 'i32'),
    numTokensPerExpert: empty([numExperts], 'i32'),
    isTokenInRank: empty([numTokens, numRanks], 'bool'),
    rankPrefixMatrix: empty([numRanks, numRanks], 'i32'),
    channelPrefixMatrix: empty([numRanks, numChannels], 'i32'),
    recvChannelPrefixMatrix: empty([numRanks, numChannels], 'i32'),
    sendHead: empty([numTokens, numRanks], 'i32'),
    numRecvTokensPerExpert: empty([end - begin], 'i32'),
    numRecvSelections: empty([end - begin], 'i32'),
    slotRow: groupedTopk === undefined ? undefined : empty([numTokens, groupedTopk], 'i32'),
  }
}

/**
 * Places for the counts of every slot that a device leaves for the host, made once: allocating such memory may wait for kernels that
 * run. The cpu needs none.
 */
export class HostCounts {
  readonly #memory: Memory | undefined
  readonly #numRanks: number
  readonly #slotCounts: number

  constructor(device: Device, { maxInFlight, maxExperts }: Required<IntranodeBufferSizes>, numRanks: number) {
    this.#numRanks = numRanks
    this.#slotCounts = numRanks + Math.ceil(maxExperts / numRanks)
    if (device instanceof CudaDevice) {
      this.#memory = device.allocatePinned(getDevice('cpu'), maxInFlight * this.#slotCounts * 4)
    }
  }

  /** i32 [ranks + local experts]: rows that each rank receives, then counts of experts, as the plan has them. */
  of(slot: number, numLocalExperts: number): Tensor | undefined {
    const memory = this.#memory
    if (memory === undefined) return undefined
    const shape = [this.#numRanks + numLocalExperts]
    return new Tensor({ memory, dtype: 'i32', shape, byteOffset: slot * this.#slotCounts * 4 })
  }

  close(): void {
    this.#memory?.close()
  }
}

/** The plan with its number of rows, once the notify kernel is done. `counts`: where it has left them for the host. */
export function settlePlan(plan: DispatchPlan, counts: Tensor | undefined): DispatchPlan {
  const numRanks = plan.numTokensPerRank.numel
  const onHost = counts?.data as Int32Array | undefined
  const hostCounts = {
    recvTokensPerRank: Int32Array.from(
      onHost?.subarray(0, numRanks) ?? (plan.rankPrefixMatrix.data.subarray((numRanks - 1) * numRanks) as Int32Array),
    ),
    numRecvTokensPerExpert: Int32Array.from(
      onHost?.subarray(numRanks) ?? (plan.numRecvTokensPerExpert.data as Int32Array),
    ),
  }
  const grouped = hostCounts.numRecvTokensPerExpert.reduce((total, count) => total + count, 0)
  const numRecvTokens = plan.grouped ? grouped : hostCounts.recvTokensPerRank[plan.rank]!
  return { ...plan, numRecvTokens, hostCounts }
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

/** Sum of counts, where the host can read them. */
export function sum(counts: Tensor): number | undefined {
  if (counts.device.kind !== 'cpu') return undefined
  return Array.from(counts.data, Number).reduce((total, count) => total + count, 0)
}
