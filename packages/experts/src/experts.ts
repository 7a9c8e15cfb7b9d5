import type { Stream, Tensor } from '@moe-ep/core'
import type { TopkWeightAndReduce } from './topk-weight-and-reduce.js'

/**
 * How rows are laid out between prepare and experts: `standard` is [rows, K] with ids and weights for each row,
 * `batchedExperts` is [local experts, rows, K] with a count for each expert.
 */
export type ActivationFormat = 'standard' | 'batchedExperts'

/** Weights of this rank's experts: E_l experts, intermediate size I, hidden size K. */
export interface ExpertWeights {
  /** f32, bf16 or f16 [E_l, 2I, K]: gate rows, then up rows. */
  readonly w13: Tensor
  /** Same dtype, [E_l, K, I]. */
  readonly w2: Tensor
}

/** How many rows of the activations belong to each local expert. */
export interface ExpertTokens {
  /** i32 [E_l] on the device. */
  readonly numTokens: Tensor
  /** The same numbers on the host, where they are known. */
  readonly numTokensHost: Int32Array | undefined
}

/** What experts compute on. */
export interface ExpertsArguments {
  /** [M, K], dtype of the rows: written in place. */
  readonly output: Tensor
  /** [M, K]: rows as prepare left them. */
  readonly hiddenStates: Tensor
  readonly weights: ExpertWeights
  /** i32 or i64 [M, topk]: local expert ids, -1 for none; global ids where an expertMap is given. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. */
  readonly expertMap?: Tensor
  readonly tokens?: ExpertTokens
  readonly stream: Stream
  readonly signal?: AbortSignal
}

/** The expert side of a layer: GEMM, activation, GEMM, and the permutation around them where the format needs one. */
export interface Experts {
  readonly activationFormat: ActivationFormat
  /** Who multiplies by the router's weights and sums over the top-k slots. */
  readonly weightAndReduce: TopkWeightAndReduce
  /** Computes `output`. Resolves when the work was enqueued; the stream orders what follows. */
  apply(args: ExpertsArguments): Promise<void>
  close(): Promise<void>
}
