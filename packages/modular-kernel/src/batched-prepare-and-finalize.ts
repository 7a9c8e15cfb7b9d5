import { argumentError, requireInteger, requireTensor, Tensor } from '@moe-ep/core'
import { permuteMasked } from '@moe-ep/deepgemm-permute'
import { batchedExpertMap, naiveBatchedWeightAndReduce, type QuantScheme } from '@moe-ep/experts'
import type { FinalizeArguments, Prepared, PrepareAndFinalize, PrepareArguments } from './prepare-and-finalize.js'
import { checkInputQuant, type InputQuant, quantizeInput, quantSchemeOf } from './quantize-input.js'
import { weightInput } from './router-weight-on-input.js'

export interface BatchedPrepareAndFinalizeOptions {
  /** Most tokens of one prepare (T). */
  readonly maxNumTokens: number
  /** Experts that this rank owns: the global ids from numLocalExperts * rank on. */
  readonly numLocalExperts: number
  /** @default 0 */
  readonly rank?: number
  /** Ranks that would send: an expert has maxNumTokens * numDispatchers rows. @default 1 */
  readonly numDispatchers?: number
  /** @default rows as they are */
  readonly quant?: InputQuant
}

/**
 * Prepare and finalize in the batched format inside one process, the reference for low-latency transports: each local expert gets
 * the rows of its slots, by token and slot, from the front of its own batch [T * dispatchers, K]; the rest of the batch means nothing.
 *
 * Rows of other ranks are not seen: the output is the sum over this rank's experts, `outputIsReduced` false.
 */
export class BatchedPrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'batchedExperts'
  readonly topkIdxDtype = undefined
  readonly outputIsReduced = false
  readonly maxNumTokensPerRank: number
  readonly numDispatchers: number
  readonly #options: Required<Omit<BatchedPrepareAndFinalizeOptions, 'quant'>>
  readonly #quant: InputQuant | undefined
  /** Experts of all ranks together, as each micro-batch's prepare named them. */
  readonly #numExperts = new Map<number, number>()

  /** @throws ERR_MOE_EP_ARGUMENT. */
  constructor({
    maxNumTokens,
    numLocalExperts,
    rank = 0,
    numDispatchers = 1,
    quant,
  }: BatchedPrepareAndFinalizeOptions) {
    requireInteger('maxNumTokens', maxNumTokens, 1)
    requireInteger('numLocalExperts', numLocalExperts, 1)
    requireInteger('rank', rank, 0)
    requireInteger('numDispatchers', numDispatchers, 1)
    checkInputQuant(quant)
    this.#options = { maxNumTokens, numLocalExperts, rank, numDispatchers }
    this.#quant = quant
    this.maxNumTokensPerRank = maxNumTokens
    this.numDispatchers = numDispatchers
  }

  get quantScheme(): QuantScheme {
    return quantSchemeOf(this.#quant)
  }

  numLocalExperts(): number {
    return this.#options.numLocalExperts
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT, also for `deferInputQuant`, which this format does not know; at the next await of the stream
   * ERR_MOE_EP_ARGUMENT for an id out of range, ERR_MOE_EP_CAPACITY when an expert is named by more slots than it has rows.
   */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, stream, deferInputQuant = false } = args
    const { maxNumTokens, numLocalExperts, rank, numDispatchers } = this.#options
    if (deferInputQuant && this.#quant !== undefined) throw argumentError('deferInputQuant', 'false', true)
    requireTensor('hiddenStates', hiddenStates, { dtype: ['f32', 'bf16', 'f16'], shape: [null, null] })
    requireInteger('rows of hiddenStates', hiddenStates.shape[0], 0, maxNumTokens)
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [hiddenStates.shape[0]!, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    requireInteger('numExperts', numExperts, numLocalExperts * (rank + 1))
    if (this.#numExperts.has(microBatch))
      throw argumentError('microBatch', 'one that was finalized or released', microBatch)
    const rows = args.applyRouterWeightOnInput === true ? weightInput(args) : args
    // A row's groups are its own, so it makes no difference whether rows are quantised before or after they were sorted.
    const sent = quantizeInput(rows.hiddenStates, { quant: this.#quant, defer: false, stream })
    const map = batchedExpertMap({ rank, numExperts, numLocalExperts })
    const permuted = permuteMasked(sent.hiddenStates, {
      ...{ topkIdx, numLocalExperts, maxTokens: maxNumTokens * numDispatchers, stream },
      expertMap: Tensor.from(map, [numExperts], 'i32', hiddenStates.device),
      ...(sent.scales !== undefined && { scales: sent.scales }),
    })
    this.#numExperts.set(microBatch, numExperts)
    return {
      ...{ hiddenStates: permuted.rows, scales: permuted.scales, groupSize: sent.groupSize },
      ...{ topkIdx, topkWeights: rows.topkWeights },
      tokens: { numTokens: permuted.maskedM, numTokensHost: undefined },
    }
  }

  /** @throws ERR_MOE_EP_ARGUMENT without a prepare, or when the experts' output does not fit. */
  async finalize({ weightAndReduce, microBatch = 0, ...args }: FinalizeArguments): Promise<void> {
    const numExperts = this.#numExperts.get(microBatch)
    if (numExperts === undefined) throw argumentError('microBatch', 'one that was prepared', microBatch)
    this.#numExperts.delete(microBatch)
    const { rank } = this.#options
    const strategy =
      weightAndReduce.kind === 'delegate' ? naiveBatchedWeightAndReduce({ rank, numExperts }) : weightAndReduce
    strategy.apply(args)
  }

  release(microBatch = 0): void {
    this.#numExperts.delete(microBatch)
  }
}
