import { argumentError, MoeEpError, requireInteger, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import type { Experts, ExpertWeights } from '@moe-ep/experts'
import type { PrepareAndFinalize, Prepared } from './prepare-and-finalize.js'

/** One pass through a layer. */
export interface ModularKernelArguments {
  /** [M, K]: this rank's tokens, not quantised. M may be 0: the rank still takes part. */
  readonly hiddenStates: Tensor
  /** Weights of this rank's experts. */
  readonly weights: ExpertWeights
  /** i32 or i64 [M, topk]: global expert ids, -1 for none. */
  readonly topkIdx: Tensor
  /** f32 [M, topk]. */
  readonly topkWeights: Tensor
  /** Experts of all ranks together. */
  readonly numExperts: number
  /** @default 0 */
  readonly microBatch?: number
  /** @default the device's default stream */
  readonly stream?: Stream
  readonly signal?: AbortSignal
}

/**
 * A MoE layer from two interchangeable parts: one that moves rows (prepare and finalize) and one that computes on them (experts).
 */
export class ModularKernel {
  readonly prepareAndFinalize: PrepareAndFinalize
  readonly experts: Experts

  /** @throws ERR_MOE_EP_ARGUMENT when the parts do not fit together, with the first reason. */
  constructor(prepareAndFinalize: PrepareAndFinalize, experts: Experts) {
    this.prepareAndFinalize = prepareAndFinalize
    this.experts = experts
    prepareAndFinalize.postInitSetup?.(experts)
    const { activationFormat } = prepareAndFinalize
    if (experts.activationFormat !== activationFormat) {
      throw argumentError('experts', `activation format ${activationFormat}, which prepare delivers`, experts.activationFormat)
    }
  }

  /**
   * The layer's output [M, K] for this rank's tokens: the weighted sum of their experts, over all ranks. Enqueued; collective: all ranks
   * call it in the same order, also those without tokens.
   *
   * @throws ERR_MOE_EP_ARGUMENT before anything is sent; otherwise what prepare, experts or finalize fail with.
   */
  async apply(args: ModularKernelArguments): Promise<Tensor> {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, signal } = args
    const stream = args.stream ?? hiddenStates.device.defaultStream
    this.#check(args)
    const output = Tensor.zeros(hiddenStates.shape, hiddenStates.dtype, hiddenStates.device)
    const prepared = await this.prepareAndFinalize.prepare({ hiddenStates, topkIdx, topkWeights, numExperts, microBatch, stream })
    try {
      const expertOutput = await this.#runExperts(prepared, args, stream, signal)
      await this.prepareAndFinalize.finalize({
        ...{ output, expertOutput, topkIdx: prepared.topkIdx, topkWeights: prepared.topkWeights, microBatch, stream },
        weightAndReduce: this.experts.weightAndReduce,
      })
    } catch (error) {
      this.prepareAndFinalize.release(microBatch)
      throw MoeEpError.from(error)
    }
    return output
  }

  async #runExperts(prepared: Prepared, args: ModularKernelArguments, stream: Stream, signal?: AbortSignal): Promise<Tensor> {
    const { hiddenStates } = prepared
    const expertOutput = Tensor.zeros(hiddenStates.shape, args.hiddenStates.dtype, hiddenStates.device)
    // Nothing arrived: nothing to compute, but finalize is still due, for the others wait for this rank.
    if (hiddenStates.shape[0] === 0) return expertOutput
    await this.experts.apply({
      ...{ output: expertOutput, hiddenStates, weights: args.weights, stream },
      ...{ topkIdx: prepared.topkIdx, topkWeights: prepared.topkWeights },
      ...(prepared.tokens !== undefined && { tokens: prepared.tokens }),
      ...(signal !== undefined && { signal }),
    })
    return expertOutput
  }

  #check({ hiddenStates, topkIdx, topkWeights, numExperts }: ModularKernelArguments): void {
    const { topkIdxDtype, maxNumTokensPerRank } = this.prepareAndFinalize
    requireTensor('hiddenStates', hiddenStates, { shape: [null, null] })
    const [rows] = hiddenStates.shape as [number, number]
    requireTensor('topkIdx', topkIdx, { dtype: topkIdxDtype ?? ['i32', 'i64'], shape: [rows, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    requireInteger('numExperts', numExperts, 1)
    if (maxNumTokensPerRank !== undefined && rows > maxNumTokensPerRank) {
      throw argumentError('hiddenStates', `at most ${maxNumTokensPerRank} tokens`, hiddenStates.toString())
    }
  }
}
