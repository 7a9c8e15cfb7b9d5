import type { Stream, Tensor } from '@moe-ep/core'
import type { ActivationFormat, Experts, ExpertTokens, QuantScheme, TopkWeightAndReduce } from '@moe-ep/experts'
import type { ScaleFormat } from '@moe-ep/quant'
import type { Receiver } from './receiver.js'

/** What a rank hands to prepare: M tokens of hidden size K, topk slots each. */
export interface PrepareArguments {
  /** [M, K], not quantised. */
  readonly hiddenStates: Tensor
  /** i32 or i64 [M, topk]: global expert ids, -1 for none. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  /** Experts of all ranks together. */
  readonly numExperts: number
  /**
   * Multiplies rows by their router weights now, rounded to the dtype of the rows, instead of afterwards. Top-1 only.
   * @default false
   */
  readonly applyRouterWeightOnInput?: boolean
  /** The experts quantise by themselves: rows are sent as they are. @default false */
  readonly deferInputQuant?: boolean
  /** Which of several interleaved halves of a batch this is. @default 0 */
  readonly microBatch?: number
  readonly stream: Stream
}

/** What the experts of this rank get: M' rows that may come from any rank. */
export interface Prepared {
  /** [M', K]; batched [E_l, rows, K]. */
  readonly hiddenStates: Tensor
  /**
   * f32 [M', G], batched [E_l, rows, G] with any strides: scales of the rows, where prepare quantised; multiply to dequantise. Packed,
   * i32 [E_l, rows, ceil(G / 4)], where `scaleFormat` says so.
   */
  readonly scales: Tensor | undefined
  /** Elements of a row that share a scale, where prepare quantised; K where a row has one. */
  readonly groupSize?: number | undefined
  /** [M', topk]: local expert ids, -1 for experts of other ranks. Batched: the caller's own. */
  readonly topkIdx: Tensor
  /** f32 [M', topk]: ones where the weights were applied to the rows. */
  readonly topkWeights: Tensor
  readonly tokens: ExpertTokens | undefined
  /**
   * [M', K], dtype of the layer: memory that finalize reads without a copy, for experts that leave one row for each row. It may be
   * the memory of `hiddenStates`.
   */
  readonly expertOutput?: Tensor
}

export interface FinalizeArguments {
  /** [M, K]: written in place. */
  readonly output: Tensor
  /** What the experts gave for the rows that prepare returned; may have no rows, finalize is a collective all the same. */
  readonly expertOutput: Tensor
  /** Ids and weights that prepare returned. */
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  /** The strategy that the experts chose. */
  readonly weightAndReduce: TopkWeightAndReduce
  readonly microBatch?: number
  readonly stream: Stream
}

/** Of the prepare that is refused. */
export interface RefuseOptions {
  /** @default 0 */
  readonly microBatch?: number | undefined
  /** @default the device's default stream */
  readonly stream?: Stream | undefined
}

/**
 * Both ends of the communication, which must agree: prepare quantises and dispatches, finalize weights, reduces and combines.
 * Calls of all ranks come in the same order.
 */
export interface PrepareAndFinalize {
  /** Format that prepare delivers; the experts must take it. */
  readonly activationFormat: ActivationFormat
  /** Width of ids that the transport insists on; undefined: any. */
  readonly topkIdxDtype: 'i32' | 'i64' | undefined
  /** Most tokens that a rank may hand to one prepare; undefined: no limit. */
  readonly maxNumTokensPerRank: number | undefined
  /** Units that send to one another. */
  readonly numDispatchers: number
  /** Whether finalize leaves the sum over all ranks, so that the layer need not all-reduce. */
  readonly outputIsReduced: boolean
  /** Form of the rows that prepare delivers, unless it is told to leave quantising to the experts. @default none */
  readonly quantScheme?: QuantScheme
  /** How the scales of groups are stored. @default f32 */
  readonly scaleFormat?: ScaleFormat
  /** Strategies of the experts that finalize takes. @default any */
  readonly weightAndReduceKinds?: readonly TopkWeightAndReduce['kind'][]
  /** Whether quantising can be left to the experts. @default false */
  readonly supportsDeferredQuant?: boolean
  /** Whether there are `prepareAsync` and `finalizeAsync`. @default false */
  readonly supportsAsync?: boolean
  /**
   * Experts that this rank owns out of `numExperts`. A kernel refuses weights of any other number before something is sent.
   * Absent: the kernel does not look.
   */
  numLocalExperts?(numExperts: number): number
  /** Called once by the kernel, when both parts are known. */
  postInitSetup?(experts: Experts): void
  /** Resolves when counts are known; rows arrive in stream order. */
  prepare(args: PrepareArguments): Promise<Prepared>
  /** Enqueues everything up to `output`. */
  finalize(args: FinalizeArguments): Promise<void>
  /** Starts what prepare does. What goes wrong is heard from the receiver. */
  prepareAsync?(args: PrepareArguments): Receiver<Prepared>
  /** Starts what finalize does. `output` is valid, in stream order, after the receiver. */
  finalizeAsync?(args: FinalizeArguments): Receiver<void>
  /**
   * Drops what a failed layer left between prepare and finalize, so that its slot is free again. With the error, where a transport
   * can tell it: finalize fails with it on the other ranks, instead of waiting for this one.
   */
  release(microBatch?: number, error?: unknown): void
  /**
   * Makes the next prepare fail with the error on the other ranks, for a layer that cannot begin on this one. Resolves when they are
   * told.
   */
  refuse?(error: unknown, options: RefuseOptions): Promise<void>
}
