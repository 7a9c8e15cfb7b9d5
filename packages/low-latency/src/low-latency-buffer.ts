import {
  argumentError,
  type Device,
  type Event,
  getDefaultDevice,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
  traceOperation,
} from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'
import { type Lease, type ProcessGroup, requireSameLayout, SlotRing, SymmetricMemory } from '@moe-ep/transport'
import { type BufferLayout, layoutBuffer, type LowLatencyBufferSizes, requireHidden } from './buffer-layout.js'
import type {
  CallOptions,
  LowLatencyCombineOptions,
  LowLatencyCombineResult,
  LowLatencyDispatchOptions,
  LowLatencyDispatchResult,
  LowLatencyHandle,
} from './call-types.js'
import { type BufferHandle, native } from './native.js'
import { packedRows, requireAligned } from './packed-rows.js'

/** How a buffer is made. */
export interface LowLatencyBufferOptions extends LowLatencyBufferSizes {
  /** Whose memory messages lie in, and whose streams run the calls. @default the default device (`getDefaultDevice()` of core) */
  readonly device?: Device
  /** Deadline of every wait for a peer. @default the group's */
  readonly timeoutMs?: number
  /** Gives up the collective set-up. */
  readonly signal?: AbortSignal
}

/**
 * Low-latency dispatch and combine of decode-size batches between ranks that map each other's memory. Made, called and closed by all
 * ranks alike. No call waits on the host, and all can be captured in a graph.
 */
export class LowLatencyBuffer implements Disposable {
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  readonly #memory: SymmetricMemory
  readonly #layout: BufferLayout
  readonly #slots: SlotRing
  readonly #handle: BufferHandle
  /** Of each slot, for as long as a handle holds it. */
  readonly #received: readonly ReceivedMessages[]
  readonly #combineBuffers: (Tensor | undefined)[] = []
  readonly #dispatches = new WeakMap<LowLatencyHandle, Dispatch>()
  #closed = false

  private constructor(memory: SymmetricMemory, layout: BufferLayout, timeoutMs: number) {
    this.group = memory.group
    this.device = memory.device
    this.timeoutMs = timeoutMs
    this.#memory = memory
    this.#layout = layout
    this.#slots = new SlotRing(layout.sizes.maxInFlight)
    this.#handle = native().createBuffer(memory.routes, layout.nativeFields)
    const { maxInFlight, maxTokensPerRank, maxTopk } = layout.sizes
    const { worldSize } = memory.group
    this.#received = Array.from({ length: maxInFlight }, () => ({
      origins: Tensor.empty([worldSize * maxTokensPerRank, native().headerBytes(maxTopk)], 'u8', this.device),
      numMessages: Tensor.empty([worldSize], 'i32', this.device),
    }))
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank, signals not counted. */
  static sizeHint(sizes: LowLatencyBufferSizes, numRanks: number): number {
    requireInteger('numRanks', numRanks, 1)
    return layoutBuffer(sizes, numRanks).byteLength
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED for a cuda device so far, or when a rank lives on another node;
   *   ERR_MOE_EP_MISMATCH for sizes that differ; ERR_MOE_EP_OUT_OF_MEMORY; what the group fails with.
   */
  static async create(group: ProcessGroup, options: LowLatencyBufferOptions): Promise<LowLatencyBuffer> {
    const { device = getDefaultDevice(), timeoutMs = group.timeoutMs, signal, ...sizes } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    const layout = layoutBuffer(sizes, group.worldSize)
    const unsupported = (why: string): MoeEpError =>
      new MoeEpError('ERR_MOE_EP_UNSUPPORTED', `low-latency buffer: ${why}`)
    // They are compiled and read through, no more: what was not seen to work is not handed out.
    if (device.kind !== 'cpu') throw unsupported(`its kernels for GPUs have not run on one yet, so not on ${device}`)
    if (group.topology.nodes > 1) throw unsupported(`it spans one node, the group has ${group.topology.nodes}`)
    const memory = await SymmetricMemory.create(group, {
      ...{ byteLength: layout.byteLength, numSignals: layout.numSignals, timeoutMs, device },
      ...(signal !== undefined && { signal }),
    })
    try {
      await requireSameLayout(group, layout.nativeFields, { timeoutMs, signal, label: 'low-latency buffer' })
      return new LowLatencyBuffer(memory, layout, timeoutMs)
    } catch (error) {
      memory.close()
      throw error
    }
  }

  /** The sizes that it was built for, defaults filled in. */
  get sizes(): Required<LowLatencyBufferSizes> {
    return this.#layout.sizes
  }

  /** Slots that no dispatch holds. */
  get freeSlots(): number {
    return this.#slots.free
  }

  /** Why calls on this buffer fail from now on, if they do. */
  get failure(): MoeEpError | undefined {
    return this.group.failure ?? this.#memory.failure
  }

  /**
   * Sends each row once to every rank that has one of its experts, cast on the way where asked for, and packs what arrives by expert:
   * inside an expert by source rank, then by token. An expert gets a token's row once, also where the token names it twice.
   *
   * Enqueued. The handle holds a slot of the buffer until its combine, or {@link release}.
   *
   * @param x bf16 [T, hidden], hidden a multiple of 8 (16 for fp8). T may be 0 and differ between ranks.
   * @param topkIdx i32 or i64 [T, topk], -1 for no expert.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_NO_FREE_SLOT, ERR_MOE_EP_RELEASED. On await of the stream: ERR_MOE_EP_ARGUMENT on all ranks
   *   for an id that is no expert's on one of them, ERR_MOE_EP_MISMATCH on all ranks for arguments that differ (the buffer works on
   *   after both; release the handle); ERR_MOE_EP_TIMEOUT naming rank, peer and what was missing; ERR_MOE_EP_PEER_LOST.
   */
  lowLatencyDispatch(x: Tensor, topkIdx: Tensor, options: LowLatencyDispatchOptions): LowLatencyDispatchResult {
    this.#requireOpen()
    const { topkWeights, numExperts, slot, out = {} } = options
    const { useFp8 = true, useUe8m0 = false, roundScale = useUe8m0, layout = 'expert-major' } = options
    this.#checkInputs(x, topkIdx, options)
    if (useUe8m0 && !(useFp8 && roundScale))
      throw argumentError('useUe8m0', 'false without useFp8 and roundScale', useUe8m0)
    const [numTokens, hidden] = x.shape as [number, number]
    requireHidden('hidden', hidden, useFp8 ? 16 : 8, this.sizes.hidden)
    const call = this.#callOf(options)
    const { cumulativeLocalExpertRecvStats: recvStats, waitRecvCostStats: waitStats } = options
    const { begin, end } = linearPlacement(numExperts, this.group.worldSize).rangeOf(this.group.rank)
    const numRanks = this.group.worldSize
    const rankMajor = layout === 'rank-major'
    const [groups, rows] = rankMajor
      ? [numRanks, this.sizes.maxTokensPerRank]
      : [end - begin, numRanks * this.sizes.maxTokensPerRank]
    const packed = packedRows(
      {
        ...{ numGroups: groups, rows, hidden },
        format: useFp8 ? (useUe8m0 ? 'fp8-ue8m0' : 'fp8') : 'bf16',
      },
      out,
      this.device,
    )
    if (recvStats !== undefined) {
      const required = { dtype: 'i32', shape: [groups], device: this.device } as const
      requireTensor('cumulativeLocalExpertRecvStats', recvStats, required)
    }
    const shared = [
      ...[hidden, useFp8 ? (roundScale ? 2 : 1) : 0, topkIdx.shape[1]!, numExperts],
      ...[topkWeights === undefined ? 0 : 1, rankMajor ? 1 : 0],
    ]
    const lease = this.#slots.acquire(slot)
    try {
      // What may fail comes first: once rows are sent, the other ranks count on this one.
      const handle: LowLatencyHandle = {
        srcInfo: Tensor.empty([groups, rows], 'i32', this.device),
        layoutRange: rankMajor ? undefined : Tensor.empty([groups, numRanks], 'i64', this.device),
        ...{
          layout,
          slot: lease.slot,
          topk: topkIdx.shape[1]!,
          numTokens,
          hidden,
          numExperts,
          weighted: topkWeights !== undefined,
        },
      }
      const routingShape = [groups, rows, topkIdx.shape[1]!]
      const recvTopkIdx = rankMajor ? Tensor.empty(routingShape, 'i32', this.device) : undefined
      const recvTopkWeights = rankMajor && topkWeights ? Tensor.empty(routingShape, 'f32', this.device) : undefined
      const { stream, timeoutMs } = this.#enter(call)
      if (lease.previous !== undefined) stream.follow(lease.previous)
      traceOperation('low-latency.dispatchSend', stream, x.byteLength, () =>
        native().dispatchSend(
          ...([stream.handle, this.#handle, lease.slot, shared, x.handle, topkIdx.handle] as const),
          ...([topkWeights?.handle, timeoutMs] as const),
        ),
      )
      const { origins, numMessages } = this.#received[lease.slot]!
      const receive = (): Event => {
        traceOperation('low-latency.dispatchReceive', stream, undefined, () =>
          native().dispatchReceive(
            ...([stream.handle, this.#handle, lease.slot, shared, packed.packedRecvX.handle] as const),
            ...([packed.packedRecvXScales?.handle, packed.packedRecvCount.handle] as const),
            ...([handle.srcInfo.handle, handle.layoutRange?.handle, origins.handle] as const),
            ...([numMessages.handle, recvTopkIdx?.handle, recvTopkWeights?.handle] as const),
            ...([recvStats?.handle, waitStats?.handle, timeoutMs] as const),
          ),
        )
        return stream.record()
      }
      const dispatch: Dispatch = { lease, receive: once(receive, 'dispatch'), received: undefined }
      this.#dispatches.set(handle, dispatch)
      const hook = (): Event => (dispatch.received = dispatch.receive())
      const result = { ...packed, handle, recvTopkIdx, recvTopkWeights }
      if (options.returnRecvHook === true) return { ...result, event: stream.record(), hook }
      return { ...result, event: hook(), hook: undefined }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /**
   * Brings rows home. With weights at the dispatch: for each token and rank the weighted f32 sum of its rows in the order of slots,
   * rounded to bf16, then here the f32 sum of those in rank order, rounded. Without: a row comes home for each selection, and here is
   * the weighted f32 sum in the order of slots, rounded once. Tokens that went nowhere get zeros.
   *
   * Enqueued; ends the handle, with a hook when it is called.
   *
   * Rank-major a row comes home for each (token, rank), and they are summed in rank order: apply weights before.
   *
   * @param x bf16 of packedRecvX's shape: its rows answer those.
   * @param topkIdx the ids of the dispatch.
   * @param topkWeights f32 [T, topk]; undefined where they came with the dispatch, and rank-major.
   * @throws ERR_MOE_EP_ARGUMENT, also for a handle whose receive hook was not called; ERR_MOE_EP_RELEASED when the handle has ended. On
   *   await as in dispatch; an id that is no expert's fails this rank alone.
   */
  lowLatencyCombine(
    x: Tensor,
    topkIdx: Tensor,
    topkWeights: Tensor | undefined,
    handle: LowLatencyHandle,
    options: LowLatencyCombineOptions = {},
  ): LowLatencyCombineResult {
    this.#requireOpen()
    const { lease, received } = this.#dispatchOf(handle)
    if (received === undefined) throw argumentError('handle', 'one whose receive hook was called', 'one before it')
    const { hidden, topk, numTokens, numExperts, srcInfo } = handle
    const rankMajor = handle.layout === 'rank-major'
    // One row of each rank comes home, with weights applied.
    const weighted = handle.weighted || rankMajor
    requireTensor('x', x, { dtype: 'bf16', shape: [...srcInfo.shape, hidden], device: this.device })
    requireAligned('x', x)
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [numTokens, topk], device: this.device })
    if (weighted !== (topkWeights === undefined))
      throw argumentError(
        'topkWeights',
        weighted ? 'nothing: they were applied where experts are' : 'a Tensor',
        topkWeights,
      )
    if (topkWeights !== undefined)
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape, device: this.device })
    const combinedX = options.out ?? Tensor.empty([numTokens, hidden], 'bf16', this.device)
    requireTensor('out', combinedX, { dtype: 'bf16', shape: [numTokens, hidden], device: this.device })
    requireAligned('out', combinedX)
    const { origins, numMessages } = this.#received[lease.slot]!
    const { stream, timeoutMs } = this.#enter(this.#callOf(options))
    stream.wait(received)
    traceOperation('low-latency.combineSend', stream, undefined, () =>
      native().combineSend(
        ...([stream.handle, this.#handle, lease.slot, weighted, rankMajor, x.handle] as const),
        ...([origins.handle, numMessages.handle] as const),
      ),
    )
    const hook = once(() => {
      traceOperation('low-latency.combineReceive', stream, combinedX.byteLength, () =>
        native().combineReceive(
          ...([stream.handle, this.#handle, lease.slot, weighted, numExperts, topkIdx.handle] as const),
          ...([topkWeights?.handle, combinedX.handle, options.waitRecvCostStats?.handle, timeoutMs] as const),
        ),
      )
      const event = stream.record()
      lease.release(event)
      return event
    }, 'combine')
    this.#dispatches.delete(handle)
    if (options.returnRecvHook === true) return { combinedX, event: stream.record(), hook }
    return { combinedX, event: hook(), hook: undefined }
  }

  /**
   * Ends a dispatch without a combine, on all ranks alike: its slot is free again. Receives what was sent if nobody has called the
   * hook. Does nothing when the handle has ended.
   * @throws ERR_MOE_EP_RELEASED when the buffer was closed.
   */
  release(handle: LowLatencyHandle): void {
    this.#requireOpen()
    const dispatch = this.#dispatches.get(handle)
    if (dispatch === undefined) return
    dispatch.received ??= dispatch.receive()
    dispatch.lease.release(dispatch.received)
    this.#dispatches.delete(handle)
  }

  /**
   * Memory for the experts' results, bf16 [L, N, hidden], that belongs to the handle's slot: for callers that want none of their own.
   * Combine reads its input where it lies, so on the cpu no memory is better than other.
   * @throws ERR_MOE_EP_RELEASED when the handle has ended.
   */
  getNextLowLatencyCombineBuffer(handle: LowLatencyHandle): Tensor {
    this.#requireOpen()
    this.#dispatchOf(handle)
    const shape = [...handle.srcInfo.shape, handle.hidden]
    const known = this.#combineBuffers[handle.slot]
    if (known !== undefined && known.numel >= shape.reduce((a, b) => a * b, 1))
      return new Tensor({ memory: known.memory, dtype: 'bf16', shape, byteOffset: known.byteOffset })
    return (this.#combineBuffers[handle.slot] = Tensor.empty(shape, 'bf16', this.device))
  }

  /**
   * Does nothing: signals count calls, so that nothing is left to clean when shapes change. For programs that were written for buffers
   * that need it.
   * @throws ERR_MOE_EP_RELEASED when the buffer was closed.
   */
  cleanLowLatencyBuffer(): void {
    this.#requireOpen()
  }

  /** Frees the memory as soon as queued work is done. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    native().closeBuffer(this.#handle)
    this.#memory.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #checkInputs(x: Tensor, topkIdx: Tensor, options: LowLatencyDispatchOptions): void {
    const { device } = this
    const { numExperts, topkWeights, layout = 'expert-major' } = options
    requireTensor('x', x, { dtype: 'bf16', shape: [null, null], device })
    requireAligned('x', x)
    const [numTokens] = x.shape as [number, number]
    requireInteger('tokens of x', numTokens, 0, this.sizes.maxTokensPerRank)
    requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [numTokens, null], device })
    requireInteger('topk', topkIdx.shape[1], 1, this.sizes.maxTopk)
    if (!['expert-major', 'rank-major'].includes(layout))
      throw argumentError('layout', "'expert-major' or 'rank-major'", layout)
    if (topkWeights !== undefined)
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape, device })
    // Rows of all experts of a rank are numbered by i32.
    const rows = this.group.worldSize * this.sizes.maxTokensPerRank
    const numRanks = this.group.worldSize
    requireInteger('numExperts', numExperts, 1, Math.floor((2 ** 31 - 1) / Math.max(rows, 1)) * numRanks)
  }

  #callOf(options: CallOptions): Call {
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, previousEvent, waitRecvCostStats } = options
    if (waitRecvCostStats !== undefined) {
      const required = { dtype: 'i64', shape: [this.group.worldSize], device: this.device } as const
      requireTensor('waitRecvCostStats', waitRecvCostStats, required)
    }
    if (typeof stream !== 'object' || stream === null || !('follow' in stream))
      throw argumentError('stream', 'a Stream', stream)
    if (stream.device.name !== this.device.name)
      throw argumentError('stream', `a stream of ${this.device}`, `one of ${stream.device}`)
    requireInteger('timeoutMs', timeoutMs, 1)
    return { stream, timeoutMs, previousEvent }
  }

  #enter(call: Call): Call {
    if (call.previousEvent !== undefined) call.stream.wait(call.previousEvent)
    return call
  }

  #dispatchOf(handle: LowLatencyHandle): Dispatch {
    const dispatch = this.#dispatches.get(handle)
    if (dispatch !== undefined) return dispatch
    throw new MoeEpError('ERR_MOE_EP_RELEASED', 'handle: its dispatch has ended, or was of another buffer')
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the buffer was closed')
  }
}

interface Call {
  readonly stream: Stream
  readonly timeoutMs: number
  readonly previousEvent: Event | undefined
}

/** What combine must know of the messages that a dispatch received. */
interface ReceivedMessages {
  /** u8 [R * maxTokensPerRank, bytes]: their headers, with the rows that selections got. */
  readonly origins: Tensor
  /** i32 [R]. */
  readonly numMessages: Tensor
}

/** A dispatch whose handle has not ended. */
interface Dispatch {
  readonly lease: Lease
  readonly receive: () => Event
  /** When its rows are there; undefined before the receive phase was enqueued. */
  received: Event | undefined
}

/** A phase is enqueued once: a second time would wait for what nobody sends. */
function once(enqueue: () => Event, what: string): () => Event {
  let called = false
  return () => {
    if (called) throw new MoeEpError('ERR_MOE_EP_RELEASED', `the receive hook of this ${what} was called already`)
    called = true
    return enqueue()
  }
}
