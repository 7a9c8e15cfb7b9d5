import {
  argumentError,
  type DType,
  dtypes,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
} from '@moe-ep/core'
import { contiguousWeightAndReduce, type QuantScheme } from '@moe-ep/experts'
import type { DispatchHandle, DispatchResult, IntranodeBuffer } from '@moe-ep/intranode-ht'
import { linearPlacement } from '@moe-ep/layout'
import type {
  FinalizeArguments,
  Prepared,
  PrepareAndFinalize,
  PrepareArguments,
  RefuseOptions,
} from './prepare-and-finalize.js'
import { checkInputQuant, type InputQuant, type InputRows, quantizeInput, quantSchemeOf } from './quantize-input.js'
import { guardedReceiver, type Receiver, received } from './receiver.js'
import { weightInput } from './router-weight-on-input.js'

export interface HtPrepareAndFinalizeOptions {
  /** Quantises rows before they are sent, which halves their bytes. @default sent as they are */
  readonly quant?: InputQuant
  /**
   * Stream for dispatch and combine, so that what is enqueued on the layer's stream meanwhile does not wait for peers.
   * @default the layer's stream
   */
  readonly commStream?: Stream
}

/** A micro-batch between prepare and finalize. */
interface InFlight {
  readonly stream: Stream
  handle: DispatchHandle | undefined
  released: boolean
  /** Why it was released, where that is told to the other ranks. */
  error?: unknown
}

/** What dispatch takes. */
interface RowsToSend {
  readonly rows: InputRows
  readonly topkWeights: Tensor
  readonly comm: Stream
}

/**
 * Prepare and finalize on a high-throughput buffer: rows go once to each rank that has one of their experts, as bf16 or as fp8 with
 * scales, and one bf16 partial sum per rank comes back.
 *
 * One dispatch handle is kept for each micro-batch, so several can be between prepare and finalize if the buffer's
 * `maxInFlight` allows.
 */
export class HtPrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'standard'
  readonly topkIdxDtype = undefined
  readonly outputIsReduced = true
  readonly supportsAsync = true
  readonly supportsDeferredQuant = true
  readonly #buffer: IntranodeBuffer
  readonly #quant: InputQuant | undefined
  readonly #commStream: Stream | undefined
  readonly #inFlight = new Map<number, InFlight>()

  /** @throws ERR_MOE_EP_ARGUMENT for a way of quantising that is none. */
  constructor(buffer: IntranodeBuffer, { quant, commStream }: HtPrepareAndFinalizeOptions = {}) {
    checkInputQuant(quant)
    this.#buffer = buffer
    this.#quant = quant
    this.#commStream = commStream
  }

  /** Elements of a row, its bytes rounded up to a multiple of 512: bf16 2880 gives 3072. Rows of any multiple of 16 bytes work here. */
  static roundUpHiddenSize(hidden: number, dtype: DType): number {
    requireInteger('hidden', hidden, 1)
    const elements = (512 * 8) / dtypes[dtype].bits
    return Math.ceil(hidden / elements) * elements
  }

  get quantScheme(): QuantScheme {
    return quantSchemeOf(this.#quant)
  }

  get maxNumTokensPerRank(): number {
    return this.#buffer.sizes.maxTokensPerRank
  }

  get numDispatchers(): number {
    return this.#buffer.group.worldSize
  }

  numLocalExperts(numExperts: number): number {
    const { rank, worldSize } = this.#buffer.group
    return linearPlacement(numExperts, worldSize).countOf(rank)
  }

  /**
   * @throws ERR_MOE_EP_ARGUMENT when the micro-batch is still between prepare and finalize, or rows are not bf16; what dispatch throws.
   */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    return received(this.prepareAsync(args))
  }

  /** The dispatch is enqueued at once; the receiver waits for counts. @throws as {@link prepare}. */
  prepareAsync(args: PrepareArguments): Receiver<Prepared> {
    const { hiddenStates, topkIdx, numExperts, microBatch = 0, stream } = args
    let sent: RowsToSend
    try {
      sent = this.#rowsToSend(args)
    } catch (error) {
      return this.#receiverOf(this.refuse(error, args).then(() => Promise.reject(error)))
    }
    const { rows, topkWeights, comm } = sent
    const inFlight: InFlight = { stream, handle: undefined, released: false }
    this.#inFlight.set(microBatch, inFlight)
    const dispatching = this.#buffer
      .dispatch(rows.hiddenStates, {
        ...{ topkIdx, topkWeights, numExperts, stream: comm },
        ...(rows.scales !== undefined && { scales: rows.scales }),
      })
      .then(
        (result) => this.#arrived(inFlight, result, rows, hiddenStates.dtype),
        (error: unknown) => {
          if (!inFlight.released) this.#inFlight.delete(microBatch)
          throw error
        },
      )
    return this.#receiverOf(dispatching)
  }

  /** @throws ERR_MOE_EP_ARGUMENT when there was no prepare; what combine throws. */
  async finalize(args: FinalizeArguments): Promise<void> {
    return received(this.finalizeAsync(args))
  }

  /** The combine is enqueued at once; the receiver orders the stream after it. @throws as {@link finalize}. */
  finalizeAsync(args: FinalizeArguments): Receiver<void> {
    const { output, expertOutput, topkIdx, topkWeights, microBatch = 0, stream } = args
    const handle = this.#inFlight.get(microBatch)?.handle
    if (handle === undefined)
      throw new MoeEpError('ERR_MOE_EP_ARGUMENT', `finalize: micro-batch ${microBatch} was not prepared`)
    this.#inFlight.delete(microBatch)
    try {
      const { weightAndReduce } = args
      const strategy = weightAndReduce.kind === 'delegate' ? contiguousWeightAndReduce : weightAndReduce
      const rows =
        handle.plan.numRecvTokens === 0
          ? Tensor.zeros([0, output.shape[1]!], output.dtype, output.device)
          : strategy.apply({ expertOutput, topkIdx, topkWeights, stream })
      const comm = this.#enterComm(stream)
      const { event } = this.#buffer.combine(rows, handle, { out: output, stream: comm })
      return guardedReceiver('finalizeAsync', {
        receive: async () => {
          if (comm !== stream) stream.wait(event)
        },
      })
    } catch (error) {
      this.#buffer.refuseCombine(handle, error, { stream: this.#commStream ?? stream })
      throw error
    }
  }

  /**
   * Frees the slot of a micro-batch that will not be finalized, also of one whose receiver was not called yet. With the error, a
   * finalize of the other ranks fails with it; without one, they must release theirs as well.
   */
  release(microBatch = 0, error?: unknown): void {
    const inFlight = this.#inFlight.get(microBatch)
    if (inFlight === undefined) return
    this.#inFlight.delete(microBatch)
    const { handle, stream } = inFlight
    inFlight.released = true
    inFlight.error = error
    if (handle === undefined) return
    if (error === undefined) return handle.lease.release(stream.closed ? undefined : stream.record())
    this.#buffer.refuseCombine(handle, error, { stream: this.#commStream ?? stream })
  }

  /** Takes part in the dispatch that the others call. */
  async refuse(error: unknown, { stream }: RefuseOptions): Promise<void> {
    const comm = this.#commStream ?? stream
    await this.#buffer.refuseDispatch(error, { ...(comm !== undefined && { stream: comm }) })
  }

  /** What dispatch will take, checked and made ready. */
  #rowsToSend(args: PrepareArguments): RowsToSend {
    const { hiddenStates, topkIdx, topkWeights, microBatch = 0, stream, deferInputQuant = false } = args
    requireTensor('hiddenStates', hiddenStates, { dtype: 'bf16', shape: [null, null] })
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [hiddenStates.shape[0]!, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    if (this.#inFlight.has(microBatch))
      throw argumentError('microBatch', 'one that was finalized or released', microBatch)
    const sent = args.applyRouterWeightOnInput === true ? weightInput(args) : { hiddenStates, topkWeights }
    const rows = quantizeInput(sent.hiddenStates, { quant: this.#quant, defer: deferInputQuant, stream })
    return { rows, topkWeights: sent.topkWeights, comm: this.#enterComm(stream) }
  }

  /** Whoever holds the receiver hears of a failure; one that is dropped is nobody's. */
  #receiverOf(preparing: Promise<Prepared>): Receiver<Prepared> {
    preparing.catch(() => {})
    return guardedReceiver('prepareAsync', { receive: () => preparing })
  }

  #arrived(inFlight: InFlight, result: DispatchResult, { groupSize }: InputRows, dtype: DType): Prepared {
    const { handle, event } = result
    const { stream } = inFlight
    if (inFlight.released) {
      if (inFlight.error === undefined) handle.lease.release(event)
      else this.#buffer.refuseCombine(handle, inFlight.error, { stream: this.#commStream ?? stream })
      throw new MoeEpError('ERR_MOE_EP_ABORTED', 'prepare: the micro-batch was released before its rows arrived')
    }
    inFlight.handle = handle
    if (this.#commStream !== undefined) stream.wait(event)
    return {
      ...{ hiddenStates: result.recvX, scales: result.recvXScales, groupSize },
      topkIdx: result.recvTopkIdx!,
      topkWeights: result.recvTopkWeights!,
      tokens: { numTokens: handle.plan.numRecvTokensPerExpert, numTokensHost: result.numRecvTokensPerExpert },
      expertOutput: this.#buffer.combineInput(handle, { dtype }),
    }
  }

  /** The stream for communication, ordered after what the layer enqueued so far. */
  #enterComm(stream: Stream): Stream {
    const comm = this.#commStream ?? stream
    if (comm !== stream) comm.wait(stream.mark())
    return comm
  }
}
