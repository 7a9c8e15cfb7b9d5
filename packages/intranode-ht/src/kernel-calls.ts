import { dtypes, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import type { DispatchPlan } from './dispatch-handle.js'
import { type BufferHandle, native } from './native.js'
import { sum } from './plan.js'

/** Where and for how long a kernel runs. */
export interface KernelCall {
  readonly buffer: BufferHandle
  readonly slot: number
  readonly stream: Stream
  readonly timeoutMs: number
  /** Multiprocessors of a cuda device; 0 for the default. */
  readonly numSms: number
}

/** What a rank tells the others before it sends. */
export interface Announced {
  /** Arguments that all must agree on. */
  readonly shared: readonly number[]
  readonly topkIdx: Tensor
  /** Rows that this rank can take. */
  readonly room: number
  /** Where a device leaves counts for the host. */
  readonly hostCounts: Tensor | undefined
}

/** First half of a dispatch with an exchange of counts: fills the plan's tensors. */
export function enqueueNotify(
  call: KernelCall,
  { shared, topkIdx, room, hostCounts }: Announced,
  plan: DispatchPlan,
): void {
  const { buffer, slot, stream, timeoutMs } = call
  traceOperation('intranode.notify', stream, topkIdx.byteLength + plan.sendHead.byteLength, () =>
    native().notify(
      ...([stream.handle, buffer, slot, shared, topkIdx.handle] as const),
      ...([plan.numTokensPerRank.handle, plan.numTokensPerExpert.handle, plan.isTokenInRank.handle] as const),
      ...([plan.rankPrefixMatrix.handle, plan.channelPrefixMatrix.handle] as const),
      ...([plan.recvChannelPrefixMatrix.handle, plan.sendHead.handle, plan.numRecvTokensPerExpert.handle] as const),
      ...([plan.numRecvSelections.handle, plan.slotRow?.handle, hostCounts?.handle, room, timeoutMs] as const),
    ),
  )
}

/** First half of a dispatch with a cached plan: ranks only tell one another that their slots are free. */
export function enqueueNotifyCached(call: KernelCall, shared: readonly number[], plan: DispatchPlan): void {
  const { buffer, slot, stream, timeoutMs } = call
  const { handle } = plan.rankPrefixMatrix
  traceOperation('intranode.notify', stream, plan.rankPrefixMatrix.byteLength, () =>
    native().notifyCached(stream.handle, buffer, slot, shared, handle, plan.numTokens, timeoutMs),
  )
}

/** What a plain dispatch sends. */
export interface SentRows {
  readonly x: Tensor
  readonly scales?: Tensor | undefined
  readonly topkIdx?: Tensor | undefined
  readonly topkWeights?: Tensor | undefined
  /** Whether rows past the received ones get ids of -1. */
  readonly fillTail: boolean
}

/** Second half of a dispatch: rows go to their places. */
export function enqueueSend(call: KernelCall, sent: SentRows, plan: DispatchPlan): void {
  const { buffer, slot, stream, timeoutMs, numSms } = call
  const { x, scales, topkIdx, topkWeights, fillTail } = sent
  // Every row is read once for each rank that gets it, and written there.
  const bytes = (): number | undefined => times(2 * bytesOfRow(x), sum(plan.numTokensPerRank))
  traceOperation('intranode.send', stream, bytes, () =>
    native().send(
      ...([stream.handle, buffer, slot, plan.numExperts, x.handle, scales?.handle] as const),
      ...([topkIdx?.handle, topkWeights?.handle, plan.sendHead.handle, plan.numTokensPerRank.handle] as const),
      ...([plan.rankPrefixMatrix.handle, fillTail, timeoutMs, numSms] as const),
    ),
  )
}

/** What a grouped dispatch sends, and how its padding looks. */
export interface SentGroups {
  readonly x: Tensor
  readonly scales: Tensor | undefined
  readonly topkIdx: Tensor
  readonly fill: -1 | 'expert'
  readonly zeroPadding: boolean
}

/** Second half of a grouped dispatch. */
export function enqueueSendGrouped(call: KernelCall, sent: SentGroups, plan: DispatchPlan): void {
  const { buffer, slot, stream, timeoutMs, numSms } = call
  const { x, scales, topkIdx, fill, zeroPadding } = sent
  const bytes = (): number | undefined => times(2 * bytesOfRow(x), sum(plan.numTokensPerExpert))
  traceOperation('intranode.sendGrouped', stream, bytes, () =>
    native().sendGrouped(
      ...([stream.handle, buffer, slot, plan.numExperts, plan.expertAlignment, fill === 'expert'] as const),
      ...([zeroPadding, x.handle, scales?.handle, topkIdx.handle, plan.slotRow!.handle] as const),
      ...([plan.numRecvSelections.handle, timeoutMs, numSms] as const),
    ),
  )
}

/** What a combine reads and writes. */
export interface CombinedRows {
  readonly x: Tensor
  /** Whether x must be copied to where peers read it. */
  readonly staged: boolean
  readonly topkWeights: Tensor | undefined
  readonly biases: readonly Tensor[]
  readonly combinedX: Tensor
  readonly combinedTopkWeights: Tensor | undefined
}

export function enqueueCombine(call: KernelCall, rows: CombinedRows, plan: DispatchPlan): void {
  const { buffer, slot, stream, timeoutMs, numSms } = call
  const { x, staged, topkWeights, biases, combinedX, combinedTopkWeights } = rows
  // The sum reads every row that was sent and writes one for each token.
  const bytes = (): number | undefined =>
    times(bytesOfRow(x), stagedRows(staged, plan), sum(plan.numTokensPerRank), plan.numTokens)
  traceOperation('intranode.combine', stream, bytes, () =>
    native().combine(
      ...([stream.handle, buffer, slot, x.handle, topkWeights?.handle] as const),
      ...([plan.rankPrefixMatrix.handle, plan.sendHead.handle] as const),
      ...([
        biases[0]?.handle,
        biases[1]?.handle,
        combinedX.handle,
        combinedTopkWeights?.handle,
        timeoutMs,
        numSms,
      ] as const),
    ),
  )
}

/** What a combine from grouped rows reads and writes. */
export interface CombinedGroups {
  readonly x: Tensor
  readonly staged: boolean
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  readonly combinedX: Tensor
}

export function enqueueCombineGrouped(call: KernelCall, rows: CombinedGroups, plan: DispatchPlan): void {
  const { buffer, slot, stream, timeoutMs, numSms } = call
  const { x, staged, topkIdx, topkWeights, combinedX } = rows
  const bytes = (): number | undefined =>
    times(bytesOfRow(x), stagedRows(staged, plan), sum(plan.numTokensPerExpert), plan.numTokens)
  traceOperation('intranode.combineGrouped', stream, bytes, () =>
    native().combineGrouped(
      ...([stream.handle, buffer, slot, plan.numExperts, x.handle, topkIdx.handle, topkWeights.handle] as const),
      ...([plan.slotRow!.handle, plan.numRecvTokensPerExpert.handle, combinedX.handle, timeoutMs, numSms] as const),
    ),
  )
}

/** Staging reads and writes every received row. */
function stagedRows(staged: boolean, plan: DispatchPlan): number {
  return staged ? 2 * plan.numRecvTokens : 0
}

/** Enqueues a copy of the first rows of `from`, as many as `to` has. */
export function enqueueCopyRows(stream: Stream, from: Tensor, to: Tensor): void {
  native().copyRows(stream.handle, from.handle, to.handle)
}

function bytesOfRow(x: Tensor): number {
  return (x.shape[1]! * dtypes[x.dtype].bits) / 8
}

/** Bytes of so many rows, undefined when the host does not know how many. */
function times(rowBytes: number, ...rows: readonly (number | undefined)[]): number | undefined {
  return rows.reduce<number | undefined>(
    (total, count) => (total === undefined || count === undefined ? undefined : total + rowBytes * count),
    0,
  )
}
