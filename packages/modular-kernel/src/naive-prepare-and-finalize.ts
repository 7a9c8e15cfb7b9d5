import {
  argumentError,
  type DType,
  decode,
  encode,
  MoeEpError,
  requireTensor,
  type StorageArray,
  type Tensor,
} from '@moe-ep/core'
import { contiguousWeightAndReduce, type QuantScheme } from '@moe-ep/experts'
import { linearPlacement } from '@moe-ep/layout'
import type { ProcessGroup } from '@moe-ep/transport'
import { gatherTensors } from './gather-tensors.js'
import type { FinalizeArguments, Prepared, PrepareAndFinalize, PrepareArguments } from './prepare-and-finalize.js'
import { checkInputQuant, type InputQuant, quantizeInput, quantSchemeOf } from './quantize-input.js'
import { weightInput } from './router-weight-on-input.js'

const floatDtypes: readonly DType[] = ['f32', 'bf16', 'f16']

/**
 * Prepare and finalize in the plainest way that works on several ranks: every rank gets all rows, ids and weights, and computes on
 * those that name its experts; then every rank gets all partial sums and adds up those of its own tokens. The reference for the others.
 *
 * Partial sums are rounded to the dtype of the rows and added in rank order in f32, rounded once: the bits of a high-throughput
 * combine. Bytes travel through the group's rendezvous, so this is slow, bounded by its `maxFrameBytes` for each rank, and
 * waits for its streams. Layers of all ranks come one after another in the same order: micro-batches must not overlap.
 */
export class NaivePrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'standard'
  readonly topkIdxDtype = undefined
  readonly maxNumTokensPerRank = undefined
  readonly outputIsReduced = true
  readonly supportsDeferredQuant = true
  readonly #group: ProcessGroup
  readonly #quant: InputQuant | undefined
  /** Tokens of each rank, for each micro-batch between prepare and finalize. */
  readonly #inFlight = new Map<number, readonly number[]>()

  /** @throws ERR_MOE_EP_ARGUMENT for a way of quantising that is none. */
  constructor(group: ProcessGroup, { quant }: { readonly quant?: InputQuant } = {}) {
    checkInputQuant(quant)
    this.#group = group
    this.#quant = quant
  }

  get quantScheme(): QuantScheme {
    return quantSchemeOf(this.#quant)
  }

  get numDispatchers(): number {
    return this.#group.worldSize
  }

  numLocalExperts(numExperts: number): number {
    return linearPlacement(numExperts, this.#group.worldSize).countOf(this.#group.rank)
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT, on all ranks for an id out of range; ERR_MOE_EP_MISMATCH on all ranks when they passed different
   * sizes; what the group and the stream fail with.
   */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, stream, deferInputQuant = false } = args
    requireTensor('hiddenStates', hiddenStates, { dtype: floatDtypes, shape: [null, null] })
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [hiddenStates.shape[0]!, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    if (this.#inFlight.has(microBatch))
      throw argumentError('microBatch', 'one that was finalized or released', microBatch)
    const placement = linearPlacement(numExperts, this.#group.worldSize)
    const rows = args.applyRouterWeightOnInput === true ? weightInput(args) : args
    const sent = quantizeInput(rows.hiddenStates, { quant: this.#quant, defer: deferInputQuant, stream })
    await stream.synchronize()
    const gathered = await gatherTensors(this.#group, {
      label: `naive prepare, ${numExperts} experts, ${hiddenStates.dtype}`,
      tensors: [sent.hiddenStates, topkIdx, rows.topkWeights, ...(sent.scales === undefined ? [] : [sent.scales])],
    })
    const [allRows, allIds, allWeights, allScales] = gathered.tensors as [Tensor, Tensor, Tensor, Tensor | undefined]
    makeLocal(allIds, numExperts, placement.rangeOf(this.#group.rank))
    this.#inFlight.set(microBatch, gathered.rows)
    return {
      ...{ hiddenStates: allRows, scales: allScales, groupSize: sent.groupSize },
      ...{ topkIdx: allIds, topkWeights: allWeights, tokens: undefined },
    }
  }

  /** @throws ERR_MOE_EP_ARGUMENT when there was no prepare; what the group and the stream fail with. */
  async finalize(args: FinalizeArguments): Promise<void> {
    const { output, expertOutput, topkIdx, topkWeights, weightAndReduce, microBatch = 0, stream } = args
    const rows = this.#inFlight.get(microBatch)
    if (rows === undefined)
      throw new MoeEpError('ERR_MOE_EP_ARGUMENT', `finalize: micro-batch ${microBatch} was not prepared`)
    this.#inFlight.delete(microBatch)
    const total = rows.reduce((sum, count) => sum + count, 0)
    // All ranks know that there is nothing to add, and none of them asks.
    if (total === 0) return
    const strategy = weightAndReduce.kind === 'delegate' ? contiguousWeightAndReduce : weightAndReduce
    const partial = strategy.apply({ expertOutput, topkIdx, topkWeights, stream })
    requireTensor('expertOutput', partial, { dtype: output.dtype, shape: [total, output.shape[1]!] })
    await stream.synchronize()
    const { tensors } = await gatherTensors(this.#group, { label: 'naive finalize', tensors: [partial] })
    const begin = rows.slice(0, this.#group.rank).reduce((sum, count) => sum + count, 0)
    // All ranks' partial sums, one after another: this rank's tokens lie at the same place in each.
    const parts = Array.from({ length: rows.length }, (_, source) => {
      const first = source * total + begin
      return tensors[0]!.slice(first, first + output.shape[0]!)
    })
    output.data.set(sumInOrder(parts) as never)
  }

  release(microBatch = 0): void {
    this.#inFlight.delete(microBatch)
  }
}

/** Turns global ids into those of a rank that owns [begin, end), -1 for others'. */
function makeLocal(
  ids: Tensor,
  numExperts: number,
  { begin, end }: { readonly begin: number; readonly end: number },
): void {
  const { data } = ids
  for (let i = 0; i < data.length; i++) {
    const id = Number(data[i])
    if (id < -1 || id >= numExperts) throw argumentError('topkIdx', `ids from -1 to ${numExperts - 1}`, id)
    const local = id >= begin && id < end ? id - begin : -1
    data[i] = (ids.dtype === 'i64' ? BigInt(local) : local) as never
  }
}

/** The f32 sum in order, from +0 on, in storage form. */
function sumInOrder(parts: readonly Tensor[]): StorageArray {
  const sum = new Float32Array(parts[0]!.numel)
  for (const { dtype, data } of parts) {
    const values = decode(dtype, data) as Float32Array
    for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + values[i]!
  }
  return encode(parts[0]!.dtype, sum)
}
