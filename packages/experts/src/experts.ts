import type { Stream, Tensor } from '@moe-ep/core'
import type { ScaleFormat } from '@moe-ep/quant'
import type { TopkWeightAndReduce } from './topk-weight-and-reduce.js'
import type { ExpertsProblem, Workspaces, WorkspaceShapes } from './workspaces.js'

/**
 * How rows are laid out between prepare and experts: `standard` is [rows, K] with ids and weights for each row,
 * `batchedExperts` is [local experts, rows, K] with a count for each expert.
 */
export type ActivationFormat = 'standard' | 'batchedExperts'

/**
 * How rows are quantised between prepare and experts: not at all, or as fp8 e4m3 with f32 scales for the groups of a row (`fp8-block`),
 * with one for each row (`fp8-token`), or with one that all rows share (`fp8-tensor`). The last two come as one column of scales,
 * `groupSize` being the whole row.
 */
export type QuantScheme = 'none' | 'fp8-block' | 'fp8-token' | 'fp8-tensor'

/** What experts do between their two GEMMs. All but `relu2NoMul` multiply a gate by an up half. */
export type Activation = 'silu' | 'gelu' | 'swigluOai' | 'relu2NoMul'

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
  /** Shape of the hidden states, their dtype or, for fp8 rows, any of f32, bf16 and f16: written in place. */
  readonly output: Tensor
  /** [M, K], batched [E_l, rows, K]: rows as prepare left them. */
  readonly hiddenStates: Tensor
  /**
   * f32 [M, ceil(K / groupSize)], batched [E_l, rows, ...] with any strides: multipliers that dequantise fp8e4m3 rows. Batched ones
   * may be packed, i32 [E_l, rows, ceil(ceil(K / groupSize) / 4)], for experts whose `scaleFormats` say so.
   */
  readonly scales?: Tensor
  /** Elements of a row that share a scale. @default 128 */
  readonly groupSize?: number
  readonly weights: ExpertWeights
  /** i32 or i64 [M, topk]: local expert ids, -1 for none; global ids where an expertMap is given. Batched: not read. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. */
  readonly expertMap?: Tensor
  /** What lies between the two GEMMs, one of the experts' own `activations`. @default 'silu' */
  readonly activation?: Activation
  /** Batched experts need it: rows beyond an expert's count are garbage. */
  readonly tokens?: ExpertTokens
  /** Scratch as `workspaceShapes` asks for; allocated when absent. */
  readonly workspaces?: Workspaces
  readonly stream: Stream
  readonly signal?: AbortSignal
}

/** What experts can do; what is absent is as its default says. */
export interface ExpertsCapabilities {
  /** Kinds of devices that they run on. @default any */
  readonly deviceKinds?: readonly string[]
  /** @default silu */
  readonly activations?: readonly Activation[]
  /** Forms of rows that they take. @default none */
  readonly quantSchemes?: readonly QuantScheme[]
  /** Forms of the scales of groups that they take, the one that they want first. @default f32 and ue8m0 */
  readonly scaleFormats?: readonly ScaleFormat[]
  /** Whether they may own a part of the experts only. @default true */
  readonly supportsExpertParallel?: boolean
  /** Numbers that the hidden and the intermediate size must be multiples of. @default 1 */
  readonly sizeMultiple?: number
  /** Whether prepare leaves quantising to them. @default false */
  readonly expectsUnquantizedInputs?: boolean
  /** Whether `output` may lie on the memory of `hiddenStates`: all rows are read before one is written. @default false */
  readonly outputMayReplaceInput?: boolean
  /** Batched experts: most tokens of one rank in one call, and the ranks that send. */
  readonly maxNumTokens?: number
  readonly numDispatchers?: number
}

/** The expert side of a layer: GEMM, activation, GEMM, and the permutation around them where the format needs one. */
export interface Experts extends ExpertsCapabilities {
  readonly activationFormat: ActivationFormat
  /** Who multiplies by the router's weights and sums over the top-k slots. */
  readonly weightAndReduce: TopkWeightAndReduce
  /** Scratch and output of a call; without it the output has the shape of the rows, and scratch is the experts' own affair. */
  workspaceShapes?(problem: ExpertsProblem): WorkspaceShapes
  /** Computes `output`. Resolves when the work was enqueued; the stream orders what follows. */
  apply(args: ExpertsArguments): Promise<void>
  close(): Promise<void>
}
