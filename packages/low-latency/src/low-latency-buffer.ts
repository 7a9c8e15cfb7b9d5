import {
  argumentError,
  CudaDevice,
  type Device,
  type Event,
  getDefaultDevice,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
} from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'
import { type Lease, type ProcessGroup, requireSameLayout, SlotRing, SymmetricMemory } from '@moe-ep/transport'
import { type BufferLayout, layoutBuffer, type LowLatencyBufferSizes } from './buffer-layout.js'
import type { LowLatencyBufferOptions } from './buffer-options.js'
import type {
  AgreeOptions,
  CallOptions,
  MaskOptions,
  LowLatencyCombineOptions,
  LowLatencyCombineResult,
  LowLatencyDispatchOptions,
  LowLatencyDispatchResult,
  LowLatencyHandle,
  RefuseDispatchOptions,
} from './call-types.js'
import { type Call, callOf, checkCombine, checkDispatch } from './call-checks.js'
import { enqueueCombine, enqueueDispatch } from './kernel-calls.js'
import { type BufferHandle, native, phase, type Phases } from './native.js'
import { packedRows, rowSources } from './packed-rows.js'
import { once, type PendingDispatch, type ReceivedMessages, roomForMessages } from './pending-dispatch.js'
import { streamToTell } from './refusals.js'
import { rowFormatOf } from './row-format.js'
import { settleMasks } from './settle-masks.js'
import packageJson from '../package.json' with { type: 'json' }

const { version } = packageJson

/**
 * Low-latency dispatch and combine of decode-size batches between ranks that map each other's memory. Made, called and closed by all
 * ranks alike. No call waits on the host, and all can be captured in a graph.
 */
export class LowLatencyBuffer implements Disposable {
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  /** Multiprocessors that calls take where they do not say otherwise; 1 on the cpu, where it means nothing. */
  readonly numSms: number
  readonly #memory: SymmetricMemory
  readonly #layout: BufferLayout
  readonly #slots: SlotRing
  readonly #handle: BufferHandle
  /** Of each slot, for as long as a handle holds it. */
  readonly #received: readonly ReceivedMessages[]
  readonly #combineBuffers: (Tensor | undefined)[] = []
  readonly #dispatches = new WeakMap<LowLatencyHandle, PendingDispatch>()
  #closed = false

  private constructor(memory: SymmetricMemory, layout: BufferLayout, options: LowLatencyBufferOptions) {
    this.group = memory.group
    this.device = memory.device
    this.timeoutMs = options.timeoutMs ?? memory.group.timeoutMs
    this.numSms = options.numSms ?? Math.max(1, Math.floor(multiprocessorsOf(memory.device) / memory.ranksOnDevice))
    this.#memory = memory
    this.#layout = layout
    this.#slots = new SlotRing(layout.sizes.maxInFlight)
    this.#handle = native().createBuffer(memory.routes, layout.nativeFields, layout.sizes.masks === 'late')
    const { maxInFlight, maxTokensPerRank, maxTopk } = layout.sizes
    const room = { ranks: memory.group.worldSize, tokens: maxTokensPerRank, topk: maxTopk }
    this.#received = Array.from({ length: maxInFlight }, () => roomForMessages(this.device, room))
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank, signals not counted. */
  static sizeHint(sizes: LowLatencyBufferSizes, numRanks: number): number {
    requireInteger('numRanks', numRanks, 1)
    return layoutBuffer(sizes, numRanks).byteLength
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED when a rank lives on another node, and for more than
   *   32 ranks of cuda devices;
   *   ERR_MOE_EP_MISMATCH for sizes, or versions of this package, that differ; ERR_MOE_EP_OUT_OF_MEMORY; what the group fails with.
   */
  static async create(group: ProcessGroup, options: LowLatencyBufferOptions): Promise<LowLatencyBuffer> {
    const { device = getDefaultDevice(), timeoutMs = group.timeoutMs, signal, numSms, ...sizes } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    if (numSms !== undefined) requireInteger('numSms', numSms, 1, 1024)
    const layout = layoutBuffer(sizes, group.worldSize)
    const unsupported = (why: string): MoeEpError =>
      new MoeEpError('ERR_MOE_EP_UNSUPPORTED', `low-latency buffer: ${why}`)
    if (group.topology.nodes > 1) throw unsupported(`it spans one node, the group has ${group.topology.nodes}`)
    await requireSameLayout(group, layout.nativeFields, { timeoutMs, signal, version, label: 'low-latency buffer' })
    const memory = await SymmetricMemory.create(group, {
      ...{ byteLength: layout.byteLength, numSignals: layout.numSignals, timeoutMs, device },
      outlivesPeers: layout.sizes.masks === 'late',
      ...(signal !== undefined && { signal }),
    })
    try {
      return new LowLatencyBuffer(memory, layout, options)
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
    return this.#memory.failure ?? this.group.failure
  }

  /**
   * Sends each row once to every rank that has one of its experts, cast on the way to `format`, and packs what arrives by expert:
   * inside an expert by source rank, then by token. An expert gets a token's row once, also where the token names it twice.
   *
   * Enqueued. The handle holds a slot of the buffer until its combine, or {@link release}.
   *
   * @param x bf16 [T, hidden], hidden a multiple of 8 (fp8 and MXFP8: 16, NVFP4: 32). T may be 0 and differ between ranks.
   * @param topkIdx i32 or i64 [T, topk], -1 for no expert.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_NO_FREE_SLOT, ERR_MOE_EP_RELEASED: on this rank alone, before anything is sent; the others wait
   *   for it unless it calls {@link refuseDispatch}. On await of the stream: what other ranks refuse with; ERR_MOE_EP_ARGUMENT on all ranks
   *   for an id that is no expert's on one of them, ERR_MOE_EP_MISMATCH on all ranks for arguments that differ (the buffer works on
   *   after both; release the handle); ERR_MOE_EP_TIMEOUT naming rank, peer and what was missing; ERR_MOE_EP_PEER_LOST.
   */
  lowLatencyDispatch(x: Tensor, topkIdx: Tensor, options: LowLatencyDispatchOptions): LowLatencyDispatchResult {
    return this.#dispatch(x, topkIdx, options, false)
  }

  #dispatch(x: Tensor, topkIdx: Tensor, options: LowLatencyDispatchOptions, agrees: boolean): LowLatencyDispatchResult {
    this.#requireOpen()
    const format = rowFormatOf(options)
    checkDispatch(this, { x, topkIdx, format }, options)
    const { topkWeights, numExperts, slot, out = {}, returnRecvHook = false } = options
    const { xGlobalScale, layout = 'expert-major' } = options
    const call = callOf(this, options)
    const { cumulativeLocalExpertRecvStats: recvStats, waitRecvCostStats: waitStats } = options
    const [numTokens, hidden] = x.shape as [number, number]
    const topk = topkIdx.shape[1]!
    const numRanks = this.group.worldSize
    const numLocalExperts = linearPlacement(numExperts, numRanks).countOf(this.group.rank)
    const rankMajor = layout === 'rank-major'
    const [groups, rows] = rankMajor
      ? [numRanks, this.sizes.maxTokensPerRank]
      : [numLocalExperts, numRanks * this.sizes.maxTokensPerRank]
    const packed = packedRows({ numGroups: groups, rows, hidden, format }, out, this.device)
    if (recvStats !== undefined) {
      const required = { dtype: 'i32', shape: [groups], device: this.device } as const
      requireTensor('cumulativeLocalExpertRecvStats', recvStats, required)
    }
    const shared = [
      ...[hidden, format.code, topk, numExperts],
      // The mask and the bits of a global scale are filled in where the call runs.
      ...[topkWeights === undefined ? 0 : 1, rankMajor ? 1 : 0, agrees ? 1 : 0, 0, 0],
    ]
    const weighted = topkWeights !== undefined
    const sources = rowSources({ numGroups: groups, rows, numRanks, rankMajor, topk, weighted }, out, this.device)
    const { srcInfo, layoutRange, recvTopkIdx, recvTopkWeights } = sources
    const lease = this.#slots.acquire(slot)
    try {
      // What may fail comes first: once rows are sent, the other ranks count on this one.
      const handle: LowLatencyHandle = {
        ...{ srcInfo, layoutRange, layout, slot: lease.slot },
        ...{ topk, numTokens, hidden, numExperts, weighted },
      }
      const { stream, timeoutMs, numSms } = enter(call)
      if (lease.previous !== undefined) stream.follow(lease.previous)
      const received = this.#received[lease.slot]!
      const kernel = { ...{ buffer: this.#handle, slot: lease.slot, stream, timeoutMs, numSms }, shared }
      const sent = { x, topkIdx, topkWeights, xGlobalScale }
      const enqueue = (phases: Phases): Event =>
        enqueueDispatch(kernel, phases, { ...sent, ...packed, ...sources, received, recvStats, waitStats })
      const result = { ...packed, handle, recvTopkIdx, recvTopkWeights }
      if (!returnRecvHook) {
        const event = enqueue(phase.both)
        this.#dispatches.set(handle, { lease, receive: () => event, received: event })
        return { ...result, event, hook: undefined }
      }
      const event = enqueue(phase.send)
      const receive = once(() => enqueue(phase.receive), 'dispatch')
      const dispatch: PendingDispatch = { lease, receive, received: undefined }
      this.#dispatches.set(handle, dispatch)
      return { ...result, event, hook: () => (dispatch.received = dispatch.receive()) }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /**
   * Takes part in the dispatch that the other ranks call, with an error instead of rows: theirs fails at once with its code and this rank's
   * name, of several ranks that refuse the lowest's, and the buffer works on, on all. For callers that have nothing to dispatch because
   * something failed before, so that nobody waits for them.
   *
   * Enqueued, on the device's default stream where `stream` was closed; counts as a call of dispatch and takes its slot until it is told.
   * Nothing is told while the stream captures, or by one that failed before: await it first.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_NO_FREE_SLOT; ERR_MOE_EP_RELEASED when the buffer was closed. On await of the stream what its
   *   wait for the slot fails with: ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_PEER_LOST.
   */
  refuseDispatch(error: unknown, options: RefuseDispatchOptions = {}): void {
    this.#requireOpen()
    const { slot, stream, timeoutMs = this.timeoutMs } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    const lease = this.#slots.acquire(slot)
    this.#refuse(lease, { wanted: stream, after: lease.previous }, (telling) =>
      native().refuseDispatch(telling.handle, this.#handle, lease.slot, MoeEpError.from(error).code, timeoutMs),
    )
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
   * With `useLogfmt` a row comes home as LogFMT-10 (quant's `quantizeLogFmt10` of the bf16 row that would come otherwise) and is decoded
   * to f32 for the sum.
   *
   * @param x bf16 of packedRecvX's shape: its rows answer those.
   * @param topkIdx the ids of the dispatch.
   * @param topkWeights f32 [T, topk]; undefined where they came with the dispatch, and rank-major.
   * @throws ERR_MOE_EP_ARGUMENT, also for a handle whose receive hook was not called; ERR_MOE_EP_RELEASED when the handle has ended. On
   *   await what other ranks refuse with (see {@link refuseCombine}), and as in dispatch, a `useLogfmt` that differs being an argument that
   *   differs; an id that is no expert's fails this rank alone.
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
    const { hidden, numTokens, numExperts } = handle
    const { useLogfmt = false } = options
    const rankMajor = handle.layout === 'rank-major'
    const weighted = handle.weighted || rankMajor
    checkCombine(this, { x, topkIdx, topkWeights, handle, weighted }, options)
    const call = callOf(this, options)
    const combinedX = options.out ?? Tensor.empty([numTokens, hidden], 'bf16', this.device)
    const messages = this.#received[lease.slot]!
    const { stream, timeoutMs, numSms } = enter(call)
    stream.wait(received)
    const kernel = { buffer: this.#handle, slot: lease.slot, stream, timeoutMs, numSms }
    const how = { weighted, rankMajor, useLogfmt, numExperts, waitStats: options.waitRecvCostStats }
    const enqueue = (phases: Phases): Event =>
      enqueueCombine(kernel, phases, { ...{ x, topkIdx, topkWeights, combinedX, received: messages }, ...how })
    if (options.returnRecvHook !== true) {
      const event = enqueue(phase.both)
      this.#dispatches.delete(handle)
      lease.release(event)
      return { combinedX, event, hook: undefined }
    }
    const event = enqueue(phase.send)
    this.#dispatches.delete(handle)
    const hook = once(() => {
      const received = enqueue(phase.receive)
      lease.release(received)
      return received
    }, 'combine')
    return { combinedX, event, hook }
  }

  /**
   * Takes part in the combine of `handle` that the other ranks call, with an error instead of rows: theirs fails at once with its code and
   * this rank's name, of several ranks that refuse the lowest's, and the buffer works on, on all. For callers whose experts failed, so that
   * nobody waits for them. Receives what was sent if nobody has called the hook; the slot is free again, as after a combine.
   *
   * Enqueued, on the device's default stream where `stream` was closed; does nothing when the handle has ended. Nothing is told while the
   * stream captures, or by one that failed before: await it first. The next dispatch of the slot waits until the others have combined or
   * refused.
   * @throws ERR_MOE_EP_RELEASED when the buffer was closed.
   */
  refuseCombine(handle: LowLatencyHandle, error: unknown, { stream }: Pick<CallOptions, 'stream'> = {}): void {
    this.#requireOpen()
    const dispatch = this.#dispatches.get(handle)
    if (dispatch === undefined) return
    const received = (dispatch.received ??= dispatch.receive())
    this.#dispatches.delete(handle)
    const { lease } = dispatch
    // A dispatch that failed has told its own stream, and there is nothing to refuse.
    this.#refuse(lease, { wanted: stream, after: received }, (telling) =>
      native().refuseCombine(telling.handle, this.#handle, lease.slot, MoeEpError.from(error).code),
    )
  }

  /**
   * Ends a dispatch without a combine, on all ranks alike: its slot is free again. Receives what was sent if nobody has called the
   * hook. For an end on this rank alone there is {@link refuseCombine}. Does nothing when the handle has ended.
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

  /**
   * Enqueued: masks a rank, or takes it back. This rank neither sends to a masked one nor waits for it, and sums leave out its rows. All
   * others must do the same before their next dispatch: ranks that disagree fail it on all of them, by name, and the buffer works on. A
   * rank that is masked by others hears that from its own dispatch, too. It can be taken back if it has called every dispatch meanwhile.
   * @param rank any but this one.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED for a buffer without masks; ERR_MOE_EP_RELEASED.
   */
  updateMaskBuffer(rank: number, masked: boolean, { stream = this.device.defaultStream }: MaskOptions = {}): void {
    this.#requireOpen()
    requireInteger('rank', rank, 0, this.group.worldSize - 1)
    if (rank === this.group.rank) throw argumentError('rank', 'another rank', rank)
    this.#requireMasks()
    native().updateMask(stream.handle, this.#handle, rank, masked)
  }

  /** Enqueued: takes all ranks back. */
  cleanMaskBuffer({ stream = this.device.defaultStream }: MaskOptions = {}): void {
    this.#requireOpen()
    this.#requireMasks()
    native().updateMask(stream.handle, this.#handle, -1, false)
  }

  /**
   * Enqueued: writes which ranks are masked, by {@link updateMaskBuffer} or by a deadline.
   * @param maskStatus i32 [R]: 1 for a masked rank.
   */
  queryMaskBuffer(maskStatus: Tensor, { stream = this.device.defaultStream }: MaskOptions = {}): void {
    this.#requireOpen()
    const required = { dtype: 'i32', shape: [this.group.worldSize], device: this.device } as const
    requireTensor('maskStatus', maskStatus, required)
    native().queryMask(stream.handle, this.#handle, maskStatus.handle)
  }

  /**
   * Settles on one mask: ranks that are not masked call it alike, and whom any of them masks, all mask. Where late ranks are masked, one
   * that does not come is masked, too. In dispatches without rows, two or more, until one has found the same mask in all heads; so it works
   * where the group's own connections are lost. Whom a rank finds late only then, it alone has masked in the end: the next dispatch
   * says so, as ever. Where a rank that refuses or dispatches is masked by none but a masked one, not all hear it, and those that did not wait
   * for the others until the deadline.
   * @returns the masked ranks.
   * @throws ERR_MOE_EP_MISMATCH on a rank that others have masked, and for ranks that dispatch instead; ERR_MOE_EP_CAPTURE;
   *   ERR_MOE_EP_UNSUPPORTED for a buffer without masks; what the stream failed with before, which the other ranks hear as of
   *   {@link refuseDispatch}; otherwise as {@link lowLatencyDispatch}.
   */
  async agree(options: AgreeOptions = {}): Promise<number[]> {
    this.#requireOpen()
    this.#requireMasks()
    const { stream } = callOf(this, options)
    if (stream.capturing) throw new MoeEpError('ERR_MOE_EP_CAPTURE', 'agree: its stream captures')
    const { device } = this
    const { worldSize } = this.group
    const [x, topkIdx] = [Tensor.empty([0, 8], 'bf16', device), Tensor.empty([0, 1], 'i32', device)]
    const common = { numExperts: worldSize, format: 'bf16', topkWeights: Tensor.empty([0, 1], 'f32', device) } as const
    await settleMasks({
      stream,
      refuse: (error) => this.refuseDispatch(error, options),
      dispatch: (slot = options.slot) =>
        this.#dispatch(x, topkIdx, { ...options, ...common, ...(slot !== undefined && { slot }) }, true).handle,
      release: (handle) => this.release(handle),
    })
    const status = Tensor.empty([worldSize], 'i32', device)
    this.queryMaskBuffer(status, { stream })
    await stream.synchronize()
    const masked = Array.from(await status.readNumbers())
    return masked.flatMap((is, rank) => (is === 1 ? [rank] : []))
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

  /** Tells the other ranks, if anybody can be told, and gives the slot back behind that, else behind its last use. */
  #refuse(
    lease: Lease,
    { wanted, after }: { readonly wanted: Stream | undefined; readonly after: Event | undefined },
    tell: (stream: Stream) => void,
  ): void {
    let last = after
    try {
      // Nobody waits any more where the memory has failed.
      const stream = this.#memory.failure === undefined ? streamToTell(wanted, this.device) : undefined
      if (stream === undefined) return
      if (after !== undefined) stream.follow(after)
      tell(stream)
      last = stream.mark()
    } finally {
      lease.release(last)
    }
  }

  #dispatchOf(handle: LowLatencyHandle): PendingDispatch {
    const dispatch = this.#dispatches.get(handle)
    if (dispatch !== undefined) return dispatch
    throw new MoeEpError('ERR_MOE_EP_RELEASED', 'handle: its dispatch has ended, or was of another buffer')
  }

  #requireMasks(): void {
    if (this.sizes.masks !== 'none') return
    throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', "the buffer was made without masks: see the option 'masks'")
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the buffer was closed')
  }
}

function multiprocessorsOf(device: Device): number {
  return device instanceof CudaDevice ? device.multiprocessors : 1
}

function enter(call: Call): Call {
  if (call.previousEvent !== undefined) call.stream.wait(call.previousEvent)
  return call
}
