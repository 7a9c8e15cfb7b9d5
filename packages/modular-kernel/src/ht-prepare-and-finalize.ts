import { argumentError, MoeEpError, requireTensor } from '@moe-ep/core'
import { contiguousWeightAndReduce } from '@moe-ep/experts'
import type { DispatchHandle, IntranodeBuffer } from '@moe-ep/intranode-ht'
import type { FinalizeArguments, Prepared, PrepareAndFinalize, PrepareArguments } from './prepare-and-finalize.js'

/**
 * Prepare and finalize on a high-throughput buffer: bf16 rows go once to each rank that has one of their experts, and one
 * partial sum per rank comes back.
 *
 * One dispatch handle is kept for each micro-batch, so several can be between prepare and finalize if the buffer's
 * `maxInFlight` allows.
 */
export class HtPrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'standard'
  readonly topkIdxDtype = undefined
  readonly outputIsReduced = true
  readonly #buffer: IntranodeBuffer
  readonly #handles = new Map<number, DispatchHandle>()

  constructor(buffer: IntranodeBuffer) {
    this.#buffer = buffer
  }

  get maxNumTokensPerRank(): number {
    return this.#buffer.sizes.maxTokensPerRank
  }

  get numDispatchers(): number {
    return this.#buffer.group.worldSize
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT when the micro-batch is still between prepare and finalize, or rows are not bf16; what dispatch throws.
   */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, stream } = args
    requireTensor('hiddenStates', hiddenStates, { dtype: 'bf16', shape: [null, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    if (this.#handles.has(microBatch)) throw argumentError('microBatch', 'one that was finalized or released', microBatch)
    const result = await this.#buffer.dispatch(hiddenStates, { topkIdx, topkWeights, numExperts, stream })
    this.#handles.set(microBatch, result.handle)
    return {
      hiddenStates: result.recvX,
      scales: result.recvXScales,
      topkIdx: result.recvTopkIdx!,
      topkWeights: result.recvTopkWeights!,
      tokens: { numTokens: result.handle.plan.numRecvTokensPerExpert, numTokensHost: result.numRecvTokensPerExpert },
    }
  }

  /** @throws ERR_MOE_EP_ARGUMENT when there was no prepare; what combine throws. */
  async finalize(args: FinalizeArguments): Promise<void> {
    const { output, expertOutput, topkIdx, topkWeights, microBatch = 0, stream } = args
    const handle = this.#handles.get(microBatch)
    if (handle === undefined) throw new MoeEpError('ERR_MOE_EP_ARGUMENT', `finalize: micro-batch ${microBatch} was not prepared`)
    this.#handles.delete(microBatch)
    try {
      const { weightAndReduce } = args
      const strategy = weightAndReduce.kind === 'delegate' ? contiguousWeightAndReduce : weightAndReduce
      const rows = handle.plan.numRecvTokens === 0 ? expertOutput : strategy.apply({ expertOutput, topkIdx, topkWeights, stream })
      this.#buffer.combine(rows, handle, { out: output, stream })
    } finally {
      handle.lease.release()
    }
  }

  release(microBatch = 0): void {
    this.#handles.get(microBatch)?.lease.release()
    this.#handles.delete(microBatch)
  }
}
