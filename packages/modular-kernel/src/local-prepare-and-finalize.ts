import { requireTensor } from '@moe-ep/core'
import { contiguousWeightAndReduce, type QuantScheme } from '@moe-ep/experts'
import type { FinalizeArguments, Prepared, PrepareAndFinalize, PrepareArguments } from './prepare-and-finalize.js'
import { checkInputQuant, type InputQuant, quantizeInput, quantSchemeOf } from './quantize-input.js'
import { weightInput } from './router-weight-on-input.js'

/**
 * Prepare and finalize of a rank that owns all experts: nothing moves, so local and global ids are the same. Rows may be f32, bf16
 * or f16. Any number of layers can be in flight.
 */
export class LocalPrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'standard'
  readonly topkIdxDtype = undefined
  readonly maxNumTokensPerRank = undefined
  readonly numDispatchers = 1
  /** One rank's sum is the sum over all ranks. */
  readonly outputIsReduced = true
  readonly supportsDeferredQuant = true
  readonly #quant: InputQuant | undefined

  /** @throws ERR_MOE_EP_ARGUMENT for a way of quantising that is none. */
  constructor({ quant }: { readonly quant?: InputQuant } = {}) {
    checkInputQuant(quant)
    this.#quant = quant
  }

  get quantScheme(): QuantScheme {
    return quantSchemeOf(this.#quant)
  }

  numLocalExperts(numExperts: number): number {
    return numExperts
  }

  /** @throws ERR_MOE_EP_ARGUMENT. */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    const { hiddenStates, topkIdx, topkWeights, stream, deferInputQuant = false } = args
    requireTensor('hiddenStates', hiddenStates, { dtype: ['f32', 'bf16', 'f16'], shape: [null, null] })
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [hiddenStates.shape[0]!, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    const rows = args.applyRouterWeightOnInput === true ? weightInput(args) : args
    const quantized = quantizeInput(rows.hiddenStates, { quant: this.#quant, defer: deferInputQuant, stream })
    return { ...quantized, topkIdx, topkWeights: rows.topkWeights, tokens: undefined }
  }

  /** @throws ERR_MOE_EP_ARGUMENT when the experts' output does not fit. */
  async finalize({ weightAndReduce, ...args }: FinalizeArguments): Promise<void> {
    // No rows, or rows of no slots: there is nothing to sum.
    if (args.output.numel === 0) return
    const strategy = weightAndReduce.kind === 'delegate' ? contiguousWeightAndReduce : weightAndReduce
    strategy.apply(args)
  }

  release(): void {}
}
