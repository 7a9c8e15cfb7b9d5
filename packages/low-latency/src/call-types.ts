import type { Event, Stream, Tensor } from '@moe-ep/core'
import type { RowFormatName } from './row-format.js'

/** What all calls take. */
export interface CallOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Work that must be done before. */
  readonly previousEvent?: Event
  /** Deadline of every wait for a peer. @default the buffer's */
  readonly timeoutMs?: number
  /** Multiprocessors of a cuda device for this call, the same result for any number. @default the buffer's */
  readonly numSms?: number
  /**
   * Enqueues the send phase only; `hook()` enqueues the receive phase, on the same stream, and results are undefined until then.
   * Between the two the stream is free for other work.
   * @default false
   */
  readonly returnRecvHook?: boolean
  /** i64 [R]: grows by the nanoseconds that the receive phase waited for each rank, to find slow ones. */
  readonly waitRecvCostStats?: Tensor
}

/** Of the dispatch that is refused. */
export interface RefuseDispatchOptions extends Pick<CallOptions, 'stream' | 'timeoutMs'> {
  /** Slot that the dispatch would have asked for. @default the lowest free one */
  readonly slot?: number
}

/** Of ranks that settle on one mask. */
export interface AgreeOptions extends Pick<CallOptions, 'stream' | 'timeoutMs'> {
  /** Slot of the buffer that they meet in. @default the lowest free one */
  readonly slot?: number
}

export interface MaskOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
}

export interface LowLatencyDispatchOptions extends CallOptions {
  /** Experts of all ranks together, the same on all; linear placement: the first E mod R ranks own one more. */
  readonly numExperts: number
  /** f32 [T, topk]. With them combine sums at the experts' ranks, and one row a token and rank comes home. All ranks or none. */
  readonly topkWeights?: Tensor
  /** How rows travel, the same on all ranks. @default 'fp8', with `useFp8: false` 'bf16' */
  readonly format?: RowFormatName
  /**
   * The older name of two formats: true is `format: 'fp8'` (e4m3 with a scale for 128 elements, by quant's 'deepep' numerics), false is
   * `format: 'bf16'`. Beside `format` it must say the same, so that it stands beside no other.
   */
  readonly useFp8?: boolean
  /** Of fp8: rounds scales up to powers of two. @default useUe8m0 */
  readonly roundScale?: boolean
  /** Of fp8: packs four exponents of scales into an i32; needs `roundScale`. @default false */
  readonly useUe8m0?: boolean
  /**
   * f32 [1], for `format: 'nvfp4'` alone: what rows are multiplied by before they are cast, usually 448 * 6 / (largest magnitude). Read
   * when the work runs. The same number on all ranks, for experts divide all rows by theirs; another one is a named error.
   */
  readonly xGlobalScale?: Tensor
  /** i32 [L], rank-major [R]: grows by packedRecvCount, to find out which experts are popular. */
  readonly cumulativeLocalExpertRecvStats?: Tensor
  /**
   * `'expert-major'` packs rows by expert. `'rank-major'` leaves them by source rank, each once however many experts of this rank it
   * is for, with their ids and weights beside them: for experts that group rows on their own. The same on all ranks.
   * @default 'expert-major'
   */
  readonly layout?: RecvLayout
  /** Slot of the buffer, the same on all ranks. @default the lowest free one */
  readonly slot?: number
  /** Where to write, instead of new tensors. What a call does not write must not be given. */
  readonly out?: Partial<DispatchOutputs>
}

/**
 * Received rows, by local expert; rank-major by source rank, with R in place of L and maxTokensPerRank in place of N. L experts of
 * this rank, R ranks, N = R * maxTokensPerRank.
 */
export interface PackedRows {
  /**
   * bf16, fp8e4m3 (fp8, MXFP8) or fp4e2m1 (NVFP4) [L, N, hidden]. Rows of an expert are packed from the front; those past its count are
   * undefined.
   */
  readonly packedRecvX: Tensor
  /**
   * Of fp8: f32 [L, N, ceil(hidden / 128)] or packed i32 [L, N, ceil(ceil(hidden / 128) / 4)], column-major (rows are next to each
   * other). Of MXFP8: e8m0 [L, N, ceil(hidden / 32)]; of NVFP4: fp8e4m3 [L, N, hidden / 16], both row-major, as quant's operations read
   * them after a reshape to [L * N, ...]. Of bf16: undefined.
   */
  readonly packedRecvXScales: Tensor | undefined
  /** i32 [L]: rows of each expert. */
  readonly packedRecvCount: Tensor
}

/** Where the rows of a dispatch come from. */
export interface RowSources {
  /** i32 [L, N], rank-major [R, maxTokensPerRank]: the token at its source that each row is of. */
  readonly srcInfo: Tensor
  /** i64 [L, R]: first row << 32 | number of rows of each source. Undefined rank-major. */
  readonly layoutRange: Tensor | undefined
  /** Rank-major only: i32 [R, maxTokensPerRank, topk], ids counted from this rank's first expert, -1 for others and where no row is. */
  readonly recvTopkIdx: Tensor | undefined
  /** Rank-major, with weights: f32 of that shape, 0 where the id is -1. */
  readonly recvTopkWeights: Tensor | undefined
}

/** All that a dispatch writes. */
export interface DispatchOutputs extends PackedRows, RowSources {}

export type RecvLayout = 'expert-major' | 'rank-major'

/** What combine needs of a dispatch. Ends with it. */
export interface LowLatencyHandle extends Pick<RowSources, 'srcInfo' | 'layoutRange'> {
  readonly layout: RecvLayout
  readonly slot: number
  readonly numTokens: number
  /** Slots of a token. */
  readonly topk: number
  readonly hidden: number
  readonly numExperts: number
  /** Whether weights came with the dispatch. */
  readonly weighted: boolean
}

export interface LowLatencyDispatchResult extends PackedRows, Pick<RowSources, 'recvTopkIdx' | 'recvTopkWeights'> {
  readonly handle: LowLatencyHandle
  /** Completes when what was enqueued is done: with a hook the send phase, else the rows. */
  readonly event: Event
  /** Enqueues the receive phase; its event completes when the rows are there. To be called once. */
  readonly hook: (() => Event) | undefined
}

export interface LowLatencyCombineOptions extends CallOptions {
  /** bf16 [T, hidden], instead of a new tensor. */
  readonly out?: Tensor
  /**
   * Rows come home as LogFMT-10, 10.25 bits an element instead of 16, each within 2.3 % (see quant's README; NaN and infinities both
   * come home as NaN). The same on all ranks.
   * @default false
   */
  readonly useLogfmt?: boolean
}

export interface LowLatencyCombineResult {
  /** bf16 [T, hidden]. */
  readonly combinedX: Tensor
  readonly event: Event
  readonly hook: (() => Event) | undefined
}
