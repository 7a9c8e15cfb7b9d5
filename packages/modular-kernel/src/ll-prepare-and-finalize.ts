import {
  argumentError,
  type Event,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  type Tensor,
} from '@moe-ep/core'
import type { QuantScheme, TopkWeightAndReduce } from '@moe-ep/experts'
import { linearPlacement } from '@moe-ep/layout'
import type { LowLatencyBuffer, LowLatencyCombineResult, LowLatencyDispatchResult } from '@moe-ep/low-latency'
import { defaultGroupSize, type ScaleFormat } from '@moe-ep/quant'
import { KeptRows } from './kept-rows.js'
import type {
  FinalizeArguments,
  Prepared,
  PrepareAndFinalize,
  PrepareArguments,
  RefuseOptions,
} from './prepare-and-finalize.js'
import { checkInputQuant, type InputQuant, quantizeInput, quantSchemeOf } from './quantize-input.js'
import { guardedReceiver, type Receiver } from './receiver.js'
import { weightInput } from './router-weight-on-input.js'

export interface LlPrepareAndFinalizeOptions {
  /**
   * Quantises rows. `fp8-block` with groups of 128 is a cast in the dispatch, by quant's 'deepep' numerics, and halves the bytes that
   * travel; any other form is made where bf16 rows arrive. @default rows as they are
   */
  readonly quant?: InputQuant
  /** How scales of the cast in the dispatch are stored. @default what the experts want first, else 'f32' */
  readonly scaleFormat?: ScaleFormat
  /**
   * Router weights travel with the rows: each rank sums what it has of a token, and one row a token and rank comes home. Otherwise
   * finalize weighs, and a row comes home for each slot, rounded less and more bytes. The same on all ranks.
   * @default true, but for buffers of protocol 'expert', which know no other way than the second
   */
  readonly weightsAtDispatch?: boolean
  /**
   * Stream for dispatch and combine, so that what is enqueued on the layer's stream meanwhile does not wait for peers.
   * @default the layer's stream
   */
  readonly commStream?: Stream
}

/** A micro-batch between prepare and finalize. */
interface InFlight {
  /** The layer's. */
  readonly stream: Stream
  readonly dispatched: LowLatencyDispatchResult
  /** Weights that finalize may still apply. */
  readonly topkWeights: Tensor
  /** When the rows are there; undefined before the hook. */
  arrived: Event | undefined
  released: boolean
}

const scaleFormats: readonly ScaleFormat[] = ['f32', 'ue8m0', 'ue8m0-packed']

/**
 * Prepare and finalize on a low-latency buffer, for batches of decode size: rows come by expert, [E_l, ranks * maxTokensPerRank, K], with
 * counts that stay on the device, so that nothing waits on the host.
 *
 * What prepare delivers lies in memory of the micro-batch, until its next prepare.
 *
 * In one step each, or in halves with a hook: starting sends, the hook enqueues the receive. Micro-batch i uses slot i of the buffer, so that all ranks take
 * the same one whenever hooks are called; hooks of several micro-batches may come late and in any order.
 */
export class LlPrepareAndFinalize implements PrepareAndFinalize {
  readonly activationFormat = 'batchedExperts'
  readonly topkIdxDtype = undefined
  readonly outputIsReduced = true
  readonly supportsAsync = true
  /** Combine weighs and sums by itself. */
  readonly weightAndReduceKinds: readonly TopkWeightAndReduce['kind'][] = ['delegate']
  readonly #buffer: LowLatencyBuffer
  readonly #quant: InputQuant | undefined
  readonly #castsInDispatch: boolean
  readonly #weightsAtDispatch: boolean
  readonly #commStream: Stream | undefined
  readonly #inFlight = new Map<number, InFlight>()
  readonly #keptRows = new KeptRows()
  readonly #wantedScaleFormat: ScaleFormat | undefined
  #scaleFormat: ScaleFormat

  /**
   * @throws ERR_MOE_EP_ARGUMENT for a way of quantising that is none, a scale format where the dispatch makes no scales, and weights at the
   *   dispatch of a buffer that takes none.
   */
  constructor(buffer: LowLatencyBuffer, options: LlPrepareAndFinalizeOptions = {}) {
    const { quant, scaleFormat, weightsAtDispatch = buffer.sizes.protocol === 'rank', commStream } = options
    checkInputQuant(quant)
    this.#castsInDispatch = quant?.kind === 'fp8-block' && (quant.groupSize ?? defaultGroupSize) === defaultGroupSize
    if (scaleFormat !== undefined && !this.#castsInDispatch)
      throw argumentError('scaleFormat', 'nothing, unless quant is fp8-block with groups of 128', scaleFormat)
    if (scaleFormat !== undefined && !scaleFormats.includes(scaleFormat))
      throw argumentError('scaleFormat', scaleFormats.join(' or '), scaleFormat)
    if (weightsAtDispatch && buffer.sizes.protocol === 'expert')
      throw argumentError('weightsAtDispatch', "false with a buffer of protocol 'expert'", weightsAtDispatch)
    this.#buffer = buffer
    this.#quant = quant
    this.#weightsAtDispatch = weightsAtDispatch
    this.#commStream = commStream
    this.#wantedScaleFormat = scaleFormat
    this.#scaleFormat = scaleFormat ?? 'f32'
  }

  get quantScheme(): QuantScheme {
    return quantSchemeOf(this.#quant)
  }

  get scaleFormat(): ScaleFormat {
    return this.#scaleFormat
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

  /** Scales come as the experts want them, where the caller did not say how and the dispatch makes them. */
  postInitSetup({ scaleFormats: wanted }: { readonly scaleFormats?: readonly ScaleFormat[] }): void {
    if (this.#castsInDispatch) this.#scaleFormat = this.#wantedScaleFormat ?? wanted?.[0] ?? 'f32'
  }

  /**
   * Sends and receives in one step, enqueued when it returns: it can be captured, and awaited after. Hidden is a multiple of 8, of 16 where
   * the dispatch casts.
   *
   * @throws ERR_MOE_EP_ARGUMENT for rows that are not bf16, `deferInputQuant` where rows are quantised, and a micro-batch that is still in
   *   flight or has no slot; ERR_MOE_EP_NO_FREE_SLOT when another user of the buffer has it. With the last two the other ranks wait for
   *   this one; else they hear of it as of {@link refuse}. What was sent wrong fails the next await of the stream, on all ranks alike:
   *   release the micro-batch then.
   */
  async prepare(args: PrepareArguments): Promise<Prepared> {
    return this.#prepared(this.#dispatchOrRefuse(args, false), args)
  }

  /**
   * The send phase is enqueued at once, the hook enqueues the receive phase. The receiver throws what {@link prepare} does, and
   * ERR_MOE_EP_ABORTED when the micro-batch was released.
   */
  prepareAsync(args: PrepareArguments): Receiver<Prepared> {
    let inFlight: InFlight
    try {
      inFlight = this.#dispatchOrRefuse(args, true)
    } catch (error) {
      return guardedReceiver('prepareAsync', { receive: () => Promise.reject(error) })
    }
    return guardedReceiver('prepareAsync', {
      recvHook: () => {
        if (!inFlight.released) inFlight.arrived = inFlight.dispatched.hook!()
      },
      receive: async () => this.#prepared(inFlight, args),
    })
  }

  /** Sends results and sums in one step, enqueued when it returns. @throws as {@link finalizeAsync}. */
  async finalize(args: FinalizeArguments): Promise<void> {
    const { event, comm } = this.#combine(args, false)
    if (comm !== args.stream) args.stream.wait(event)
  }

  /**
   * Results are sent at once; the hook enqueues the sums of this rank's tokens and frees the slot, the receiver orders the stream after
   * them.
   * @throws ERR_MOE_EP_ARGUMENT when there was no prepare or its hook was not called, and for experts that do not leave weighting to
   *   finalize; what combine throws. The slot is free again then, and the other ranks' finalize fails with the same code.
   */
  finalizeAsync(args: FinalizeArguments): Receiver<void> {
    const { hook, comm } = this.#combine(args, true)
    let combined: Event | undefined
    return guardedReceiver('finalizeAsync', {
      recvHook: () => {
        combined = hook!()
      },
      receive: async () => {
        if (comm !== args.stream) args.stream.wait(combined!)
      },
    })
  }

  /**
   * Frees the slot of a micro-batch that will not be finalized, also of one whose hook was not called yet; enqueues its receive then.
   * With the error, a finalize of the other ranks fails with its code and this rank's name; without one, they must release theirs as well.
   */
  release(microBatch = 0, error?: unknown): void {
    const inFlight = this.#inFlight.get(microBatch)
    if (inFlight === undefined) return
    this.#inFlight.delete(microBatch)
    inFlight.released = true
    this.#giveBack(microBatch, inFlight, error)
  }

  /**
   * Takes part in the dispatch that the other ranks call for the micro-batch: it fails with the error's code and this rank's name. Nobody
   * is told where the micro-batch's slot is in use, for which dispatch is meant cannot be known.
   */
  async refuse(error: unknown, options: RefuseOptions): Promise<void> {
    this.#refuse(error, options)
  }

  #refuse(error: unknown, { microBatch = 0, stream }: RefuseOptions): void {
    const comm = this.#commStream ?? stream
    try {
      this.#buffer.refuseDispatch(error, { slot: microBatch, ...(comm !== undefined && { stream: comm }) })
    } catch {
      // No slot, no dispatch; and what is reported is why there was none before.
    }
  }

  #dispatchOrRefuse(args: PrepareArguments, returnRecvHook: boolean): InFlight {
    try {
      return this.#dispatch(args, returnRecvHook)
    } catch (error) {
      this.#refuse(error, args)
      throw error
    }
  }

  /** Checks and enqueues a dispatch, or its send phase. */
  #dispatch(args: PrepareArguments, returnRecvHook: boolean): InFlight {
    const { hiddenStates, topkIdx, topkWeights, numExperts, microBatch = 0, stream, deferInputQuant = false } = args
    requireTensor('hiddenStates', hiddenStates, { dtype: 'bf16', shape: [null, null] })
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [hiddenStates.shape[0]!, null] })
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    if (deferInputQuant && this.#quant !== undefined) throw argumentError('deferInputQuant', 'false', true)
    requireInteger('microBatch', microBatch, 0, this.#buffer.sizes.maxInFlight - 1)
    if (this.#inFlight.has(microBatch))
      throw argumentError('microBatch', 'one that was finalized or released', microBatch)
    const sent = args.applyRouterWeightOnInput === true ? weightInput(args) : args
    const shape = { hidden: hiddenStates.shape[1]!, numExperts }
    const comm = this.#enterComm(stream)
    const out = this.#keptRows.take(microBatch, shape, comm)
    const dispatched = this.#buffer.lowLatencyDispatch(sent.hiddenStates, topkIdx, {
      ...{ numExperts, slot: microBatch, stream: comm, returnRecvHook, ...(out && { out }) },
      ...(this.#weightsAtDispatch && { topkWeights: sent.topkWeights }),
      useFp8: this.#castsInDispatch,
      roundScale: this.#castsInDispatch && this.#scaleFormat !== 'f32',
      useUe8m0: this.#castsInDispatch && this.#scaleFormat === 'ue8m0-packed',
    })
    const { packedRecvX, packedRecvXScales, packedRecvCount } = dispatched
    this.#keptRows.keep(microBatch, shape, { packedRecvX, packedRecvXScales, packedRecvCount })
    const arrived = returnRecvHook ? undefined : dispatched.event
    const inFlight = { stream, dispatched, topkWeights: sent.topkWeights, arrived, released: false }
    this.#inFlight.set(microBatch, inFlight)
    return inFlight
  }

  /** What experts get of a dispatch whose receive phase was enqueued. */
  #prepared(inFlight: InFlight, { topkIdx, microBatch, stream }: PrepareArguments): Prepared {
    if (inFlight.released)
      throw new MoeEpError('ERR_MOE_EP_ABORTED', 'prepare: the micro-batch was released before its rows were received')
    try {
      if (this.#commStream !== undefined) stream.wait(inFlight.arrived!)
      const { topkWeights, dispatched } = inFlight
      const tokens = { numTokens: dispatched.packedRecvCount, numTokensHost: undefined }
      return { ...this.#rowsOf(dispatched, stream), topkIdx, topkWeights, tokens }
    } catch (error) {
      this.release(microBatch, error)
      throw error
    }
  }

  /** Enqueues a combine, or its send phase, and forgets the micro-batch. */
  #combine(args: FinalizeArguments, returnRecvHook: boolean): LowLatencyCombineResult & { readonly comm: Stream } {
    const { output, expertOutput, topkIdx, topkWeights, weightAndReduce, microBatch = 0, stream } = args
    const inFlight = this.#inFlight.get(microBatch)
    if (inFlight === undefined)
      throw new MoeEpError('ERR_MOE_EP_ARGUMENT', `finalize: micro-batch ${microBatch} was not prepared`)
    this.#inFlight.delete(microBatch)
    try {
      const { kind } = weightAndReduce
      if (kind !== 'delegate') throw argumentError('weightAndReduce', 'delegate, for combine weighs and sums', kind)
      const comm = this.#enterComm(stream)
      const weights = this.#weightsAtDispatch ? undefined : topkWeights
      const options = { out: output, stream: comm, returnRecvHook }
      const { handle } = inFlight.dispatched
      return { ...this.#buffer.lowLatencyCombine(expertOutput, topkIdx, weights, handle, options), comm }
    } catch (error) {
      this.#giveBack(microBatch, inFlight, error)
      throw error
    }
  }

  /** Ends a dispatch without a combine, with an error for the ranks that make one. The layer's stream may still read what arrived. */
  #giveBack(microBatch: number, { stream, dispatched: { handle } }: InFlight, error: unknown): void {
    if (!stream.closed) this.#keptRows.readUntil(microBatch, stream.mark())
    if (error === undefined) this.#buffer.release(handle)
    else this.#buffer.refuseCombine(handle, error, { stream: this.#commStream ?? stream })
  }

  /** Rows in the form that experts were promised. */
  #rowsOf(
    { packedRecvX, packedRecvXScales }: LowLatencyDispatchResult,
    stream: Stream,
  ): Pick<Prepared, 'hiddenStates' | 'scales' | 'groupSize'> {
    if (this.#castsInDispatch)
      return { hiddenStates: packedRecvX, scales: packedRecvXScales, groupSize: defaultGroupSize }
    const [experts, rows, hidden] = packedRecvX.shape as [number, number, number]
    // Rows past the counts, too, for counts are on the device: nobody reads them, and no row's scale hangs on another row.
    const quantized = quantizeInput(packedRecvX.reshape([experts * rows, hidden]), {
      ...{ quant: this.#quant, defer: false, stream },
    })
    return {
      hiddenStates: quantized.hiddenStates.reshape(packedRecvX.shape),
      scales: quantized.scales?.reshape([experts, rows, quantized.scales.shape[1]!]),
      groupSize: quantized.groupSize,
    }
  }

  /** The stream for communication, ordered after what the layer enqueued so far. */
  #enterComm(stream: Stream): Stream {
    const comm = this.#commStream ?? stream
    if (comm !== stream) comm.wait(stream.mark())
    return comm
  }
}
