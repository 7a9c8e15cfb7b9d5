import type { DType, Event, Stream, Tensor } from '@moe-ep/core'
import type { DispatchHandle, DispatchPlan, GroupedDispatchHandle } from './dispatch-handle.js'

/** Options that all calls share. */
export interface CallOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Work that must be done first. */
  readonly previousEvent?: Event
  /** Deadline of this call's waits for peers. @default the buffer's */
  readonly timeoutMs?: number
  /**
   * Multiprocessors of a cuda device that move the rows: few saturate the links, the others are free for other work. Results do not
   * depend on it; on the cpu it has no effect. @default an eighth of them, for grouped calls three sixteenths
   */
  readonly numSms?: number
}

/** Of the call that is refused. */
export interface RefuseOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Deadline of the wait for the call of the others. @default the buffer's */
  readonly timeoutMs?: number
  /** Slot that the call would have asked for. @default the lowest free one */
  readonly slot?: number
}

/** What a fresh or a cached dispatch takes alike. */
export interface SendOptions extends CallOptions {
  /** f32 [T, G]: scales of the rows, forwarded with them. */
  readonly scales?: Tensor
  /** Rounds the counts per expert up. @default 1 */
  readonly expertAlignment?: number
  /** @default 10, or the buffer's maxChannels when that is less */
  readonly numChannels?: number
  /** Slot to use, the same on all ranks. @default the lowest free one */
  readonly slot?: number
}

/** What is sent along with the rows, and where. Either `topkIdx` and `numExperts`, or a `plan`. */
export interface DispatchOptions extends SendOptions {
  /** i32 or i64 [T, K]: global expert ids, -1 for none. */
  readonly topkIdx?: Tensor
  /** f32 [T, K]: forwarded to the ranks of the experts. */
  readonly topkWeights?: Tensor
  /** Experts of all ranks together, linearly placed. */
  readonly numExperts?: number
  /** Layout of an earlier dispatch with the same routing: counts are not exchanged again. All ranks pass one, or none does. */
  readonly plan?: DispatchPlan
  /** The caller's own memory for what arrives, with at least as many rows; it outlives the lease. */
  readonly out?: DispatchOut
}

/** Memory for results of a dispatch. */
export interface DispatchOut {
  /** [rows or more, hidden], dtype of x. */
  readonly recvX?: Tensor
  /** f32 [rows or more, G]. */
  readonly recvXScales?: Tensor
  /** [rows or more, K], dtype of topkIdx. */
  readonly recvTopkIdx?: Tensor
  /** f32 [rows or more, K]. */
  readonly recvTopkWeights?: Tensor
}

/** What arrived. Tensors lie in the lease's slot (or in `out`): read those before the lease ends. */
export interface DispatchResult {
  /** [rows, hidden], dtype of x: ordered by source rank, then by token. */
  readonly recvX: Tensor
  /** f32 [rows, G], when scales were sent. */
  readonly recvXScales: Tensor | undefined
  /** [rows, K], dtype of topkIdx: local expert ids, -1 for experts of other ranks. Undefined with a plan. */
  readonly recvTopkIdx: Tensor | undefined
  /** f32 [rows, K]: 0 where the id is -1. */
  readonly recvTopkWeights: Tensor | undefined
  /** Selections of each local expert, rounded up to expertAlignment. Empty at worst-case size: the plan has them. */
  readonly numRecvTokensPerExpert: Int32Array
  readonly handle: DispatchHandle
  /** Complete when the rows have arrived. */
  readonly event: Event
}

/** How rows are laid out by expert. Either `topkIdx` and `numExperts`, or a `plan` of an earlier grouped dispatch. */
export interface GroupedDispatchOptions extends SendOptions {
  /** i32 or i64 [T, K]: global expert ids, -1 for none. Needed with a plan, too. */
  readonly topkIdx: Tensor
  /** f32 [T, K]: kept for the combine; they stay on this rank. */
  readonly topkWeights?: Tensor
  readonly numExperts: number
  readonly plan?: DispatchPlan
  /** Every expert's rows start on a multiple of it. @default 128 */
  readonly expertAlignment?: number
  /** Ids of padding rows: -1, or 'expert' for the expert before them. @default -1 */
  readonly fill?: -1 | 'expert'
  /** Whether padding rows and their scales are set to zero; else they hold anything. @default false */
  readonly zeroPadding?: boolean
}

/** Rows in the contiguous layout of grouped GEMMs: what permute would make of a plain dispatch. */
export interface GroupedDispatchResult {
  /** [M, hidden], dtype of x: by expert, inside an expert by source rank, token, slot. */
  readonly recvX: Tensor
  /** f32 [M, G] with strides (1, M rounded up to 4): column-major as TMA reads it. */
  readonly recvXScales: Tensor | undefined
  /** i32 [M]: local expert of each row; padding as `fill` says. */
  readonly expertIds: Tensor
  /** Rows of each local expert, padding counted. Their sum is M. */
  readonly numRecvTokensPerExpert: Int32Array
  readonly handle: GroupedDispatchHandle
  readonly event: Event
}

/** What else a combine sums. */
export interface CombineOptions extends CallOptions {
  /** f32 [rows, K]: weights (or their gradients) that go home with the rows. */
  readonly topkWeights?: Tensor
  /** Up to two [T, hidden] of x's dtype, added to the sum before it is rounded. */
  readonly bias?: Tensor | readonly Tensor[]
  /** [T, hidden], dtype of x. */
  readonly out?: Tensor
}

/** What a combine gives. */
export interface CombineResult {
  /** [T, hidden], dtype of x: for each token of this rank the sum over ranks of its rows; zeros when it was sent nowhere. */
  readonly combinedX: Tensor
  /** f32 [T, K]: the same sum of the weights, when they were given. */
  readonly combinedTopkWeights: Tensor | undefined
  /** Complete when the results are. */
  readonly event: Event
}

/** Options of a combine from grouped rows. */
export interface GroupedCombineOptions extends CallOptions {
  /** f32 [T, K] of this rank's tokens. @default those of the dispatch */
  readonly topkWeights?: Tensor
  readonly out?: Tensor
}

/** A view of the slot that combine reads without a copy. */
export interface CombineInputOptions {
  /** @default that of the dispatched rows */
  readonly dtype?: DType
  /** @default that of the dispatched rows */
  readonly hidden?: number
}
