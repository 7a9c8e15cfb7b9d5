import { argumentError, MoeEpError, requireInteger, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import type { Experts, ExpertWeights } from '@moe-ep/experts'
import { runExperts } from './chunked-experts.js'
import { checkCompatibility, type LayerConfig } from './compatibility.js'
import type { FinalizeArguments, Prepared, PrepareAndFinalize, PrepareArguments } from './prepare-and-finalize.js'
import { received } from './receiver.js'
import { requireTop1 } from './router-weight-on-input.js'
import { type WorkspaceLease, WorkspaceManager } from './workspace-manager.js'

/** One pass through a layer. */
export interface ModularKernelArguments {
  /** [M, K]: this rank's tokens, not quantised. M may be 0: the rank still takes part. */
  readonly hiddenStates: Tensor
  /** Weights of this rank's experts, as many as prepare says that it owns. */
  readonly weights: ExpertWeights
  /** i32 or i64 [M, topk]: global expert ids, -1 for none. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  /** Experts of all ranks together. */
  readonly numExperts: number
  /** Multiplies rows by their router weights before they are sent, instead of afterwards. Top-1 only. @default false */
  readonly applyRouterWeightOnInput?: boolean
  /**
   * Work of the layer that needs nothing from peers. Called once, where the rows are on their way home: between the halves of an
   * asynchronous finalize; without one, after finalize. Its result is the caller's own affair.
   */
  readonly sharedExperts?: () => Promise<unknown> | void
  /**
   * Called between the halves of prepare and between those of finalize, so that other micro-batches go on while rows travel: `pass`
   * of {@link MicroBatches}. Not called where the transport has no halves.
   */
  readonly pass?: () => Promise<void>
  /** Where the output goes, [M, K] of the rows' dtype. @default new memory */
  readonly output?: Tensor
  /** @default 0 */
  readonly microBatch?: number
  /** @default the device's default stream */
  readonly stream?: Stream
  readonly signal?: AbortSignal
}

/** How a kernel is made. */
export interface ModularKernelOptions {
  /** What the layer will ask of its parts: checked at once. */
  readonly config?: LayerConfig
  /** Cuts the rows for the experts into pieces, which bounds their scratch. @default all at once */
  readonly maxRowsPerChunk?: number
  /** Scratch to share with other layers, which then run one after another or in micro-batches of their own. @default own */
  readonly workspaces?: WorkspaceManager
}

/** What a layer has when it may prepare. */
interface Begun {
  readonly stream: Stream
  readonly output: Tensor
  readonly workspace: WorkspaceLease
}

/**
 * A MoE layer from two interchangeable parts: one that moves rows (prepare and finalize) and one that computes on them (experts).
 */
export class ModularKernel {
  readonly prepareAndFinalize: PrepareAndFinalize
  readonly experts: Experts
  readonly workspaces: WorkspaceManager
  readonly #maxRowsPerChunk: number
  readonly #activation: LayerConfig['activation']

  /** @throws ERR_MOE_EP_ARGUMENT when the parts do not fit together, with the first reason of {@link checkCompatibility}. */
  constructor(prepareAndFinalize: PrepareAndFinalize, experts: Experts, options: ModularKernelOptions = {}) {
    const { config = {}, maxRowsPerChunk, workspaces = new WorkspaceManager() } = options
    this.prepareAndFinalize = prepareAndFinalize
    this.experts = experts
    this.workspaces = workspaces
    this.#activation = config.activation
    if (maxRowsPerChunk !== undefined) requireInteger('maxRowsPerChunk', maxRowsPerChunk, 1)
    this.#maxRowsPerChunk = maxRowsPerChunk ?? Infinity
    prepareAndFinalize.postInitSetup?.(experts)
    const reason = checkCompatibility(prepareAndFinalize, experts, config)
    if (reason !== undefined) throw argumentError(reason.argument, reason.expected, reason.received)
  }

  /**
   * The layer's output [M, K] for this rank's tokens: the weighted sum of their experts, over all ranks. Enqueued; collective: all ranks
   * call it in the same order, also those without tokens.
   *
   * @throws ERR_MOE_EP_ARGUMENT before anything is sent; otherwise what prepare, experts or finalize fail with. What fails on one rank
   *   fails on all, where the transport can tell it: there with the same code, from the stream when the rows were on their way home.
   */
  async apply(args: ModularKernelArguments): Promise<Tensor> {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, applyRouterWeightOnInput = false } = args
    let begun: Begun
    try {
      begun = this.#begin(args)
    } catch (error) {
      // The other ranks begin their layers and would wait for this one's rows.
      await this.prepareAndFinalize.refuse?.(error, { microBatch, stream: args.stream })
      throw error
    }
    const { stream, output, workspace } = begun
    const { dtype } = hiddenStates
    try {
      const preparing = {
        ...{ hiddenStates, topkIdx, topkWeights, numExperts, microBatch, applyRouterWeightOnInput, stream },
        deferInputQuant: this.experts.expectsUnquantizedInputs ?? false,
      }
      const prepared = await this.#prepare(preparing, args.pass)
      try {
        const expertOutput = await runExperts({
          ...{ experts: this.experts, prepared, weights: args.weights, outputDtype: dtype, stream, workspace },
          ...{ signal: args.signal, maxRowsPerChunk: this.#maxRowsPerChunk, activation: this.#activation },
        })
        const finalizing = {
          ...{ output, expertOutput, topkIdx: prepared.topkIdx, topkWeights: prepared.topkWeights, microBatch, stream },
          weightAndReduce: this.experts.weightAndReduce,
        }
        await this.#finalize(finalizing, args)
      } catch (error) {
        this.prepareAndFinalize.release(microBatch, error)
        throw MoeEpError.from(error)
      }
    } finally {
      workspace.leave()
    }
    return output
  }

  /** Everything before prepare. */
  #begin(args: ModularKernelArguments): Begun {
    const { hiddenStates, microBatch = 0 } = args
    this.#check(args)
    const { device, shape, dtype } = hiddenStates
    const stream = args.stream ?? device.defaultStream
    const output = args.output ?? Tensor.zeros(shape, dtype, device)
    return { stream, output, workspace: this.workspaces.enter({ device, microBatch, stream }) }
  }

  async #prepare(args: PrepareArguments, pass: ModularKernelArguments['pass']): Promise<Prepared> {
    const { prepareAndFinalize } = this
    if (pass === undefined || prepareAndFinalize.supportsAsync !== true) return prepareAndFinalize.prepare(args)
    const preparing = prepareAndFinalize.prepareAsync!(args)
    try {
      await pass()
    } catch (error) {
      // Another micro-batch failed: what was sent will not be received.
      prepareAndFinalize.release(args.microBatch, error)
      throw MoeEpError.from(error)
    }
    return received(preparing)
  }

  async #finalize(
    args: FinalizeArguments,
    { sharedExperts, pass }: Pick<ModularKernelArguments, 'sharedExperts' | 'pass'>,
  ): Promise<void> {
    const { prepareAndFinalize } = this
    const between = sharedExperts ?? pass
    if (between === undefined || prepareAndFinalize.supportsAsync !== true) {
      await prepareAndFinalize.finalize(args)
      await sharedExperts?.()
      return
    }
    const finalizing = prepareAndFinalize.finalizeAsync!(args)
    try {
      await sharedExperts?.()
      await pass?.()
    } finally {
      // Also when one of them failed: what was started is brought to its end.
      await received(finalizing)
    }
  }

  #check(args: ModularKernelArguments): void {
    const { hiddenStates, topkIdx, topkWeights, weights, numExperts, applyRouterWeightOnInput = false, output } = args
    const { topkIdxDtype, maxNumTokensPerRank } = this.prepareAndFinalize
    requireTensor('hiddenStates', hiddenStates, { shape: [null, null] })
    const [rows, hidden] = hiddenStates.shape as [number, number]
    requireTensor('topkIdx', topkIdx, { dtype: topkIdxDtype ?? ['i32', 'i64'], shape: [rows, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    requireInteger('numExperts', numExperts, 1)
    // Found by the experts these would be found too late: after this rank's rows went out, with the others waiting for its answer.
    const owned = this.prepareAndFinalize.numLocalExperts?.(numExperts) ?? null
    requireTensor('w13', weights?.w13, { shape: [owned, null, hidden], contiguous: false })
    requireTensor('w2', weights?.w2, { shape: [weights.w13.shape[0]!, hidden, null], contiguous: false })
    if (output !== undefined) requireTensor('output', output, { dtype: hiddenStates.dtype, shape: hiddenStates.shape })
    if (applyRouterWeightOnInput) requireTop1(topkIdx)
    if (maxNumTokensPerRank !== undefined && rows > maxNumTokensPerRank) {
      throw argumentError('hiddenStates', `at most ${maxNumTokensPerRank} tokens`, hiddenStates.toString())
    }
  }
}
