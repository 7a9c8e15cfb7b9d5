import { argumentError, copyTensor, getDevice, type Stream, Tensor } from '@moe-ep/core'
import type { Experts, ExpertsArguments } from '@moe-ep/experts'

const host = getDevice('cpu')

/**
 * A copy on the host of what `stream` leaves in a tensor, in the same order of elements: scales may lie column by column.
 * @throws ERR_MOE_EP_ARGUMENT for a tensor with gaps.
 */
export async function toHost(tensor: Tensor, stream: Stream): Promise<Tensor> {
  const { dtype, shape, strides, numel, memory, byteOffset, byteLength, spanBytes } = tensor
  if (spanBytes !== byteLength) throw argumentError('tensor', 'one without gaps', `strides [${strides.join(', ')}]`)
  const copy = Tensor.empty([numel], dtype, host)
  copyTensor(new Tensor({ memory, dtype, byteOffset, shape: [numel] }), copy, { stream })
  await stream.synchronize()
  return new Tensor({ memory: copy.memory, dtype, shape, strides, byteOffset: copy.byteOffset })
}

/**
 * Experts of the host for rows on any device: rows go there and results come back. Weights stay on the host. Until GPUs have GEMMs of
 * their own here, that is how a layer of GPUs has its experts.
 */
export class ThroughHost implements Experts {
  readonly activationFormat
  readonly weightAndReduce
  readonly outputMayReplaceInput = true
  readonly scaleFormats: NonNullable<Experts['scaleFormats']>
  readonly maxNumTokens?: number
  readonly numDispatchers?: number
  readonly #experts: Experts
  readonly #stream = host.createStream()

  constructor(experts: Experts) {
    this.#experts = experts
    this.activationFormat = experts.activationFormat
    this.weightAndReduce = experts.weightAndReduce
    this.scaleFormats = experts.scaleFormats ?? ['f32', 'ue8m0']
    // Batched experts have them, and a kernel asks for them.
    if (experts.maxNumTokens !== undefined) this.maxNumTokens = experts.maxNumTokens
    if (experts.numDispatchers !== undefined) this.numDispatchers = experts.numDispatchers
  }

  get quantSchemes() {
    return this.#experts.quantSchemes ?? []
  }

  async apply(args: ExpertsArguments): Promise<void> {
    const { hiddenStates, scales, topkIdx, topkWeights, tokens, output, workspaces: _scratch, ...others } = args
    const [rows, ids, weights, rowScales] = await Promise.all(
      [hiddenStates, topkIdx, topkWeights, scales].map((tensor) => tensor && toHost(tensor, args.stream)),
    )
    const results = Tensor.empty(output.shape, output.dtype, host)
    await this.#experts.apply({
      ...others,
      ...{ hiddenStates: rows!, topkIdx: ids!, topkWeights: weights!, output: results, stream: this.#stream },
      ...(rowScales !== undefined && { scales: rowScales }),
      ...(tokens !== undefined && { tokens: { ...tokens, numTokens: await toHost(tokens.numTokens, args.stream) } }),
    })
    await this.#stream.synchronize()
    copyTensor(results, output, { stream: args.stream })
  }

  async close(): Promise<void> {
    await this.#experts.close()
    await this.#stream.close()
  }
}
