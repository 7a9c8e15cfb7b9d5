import {
  argumentError,
  type Device,
  type Event,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
} from '@moe-ep/core'
import { type CollectiveOptions, type Lease, type ProcessGroup, SlotRing, SymmetricMemory } from '@moe-ep/transport'
import { copyOut } from './copy-out.js'
import { type BufferLayout, type IntranodeBufferSizes, layoutBuffer } from './buffer-layout.js'
import {
  type CheckContext,
  checkDispatch,
  checkGroupedDispatch,
  requireNotCapturing,
  requireRows,
} from './dispatch-arguments.js'
import type { DispatchHandle, DispatchPlan, GroupedDispatchHandle } from './dispatch-handle.js'
import type {
  CallOptions,
  CombineInputOptions,
  CombineOptions,
  CombineResult,
  DispatchOptions,
  DispatchResult,
  GroupedCombineOptions,
  GroupedDispatchOptions,
  GroupedDispatchResult,
} from './dispatch-types.js'
import {
  enqueueCombine,
  enqueueCombineGrouped,
  enqueueNotify,
  enqueueNotifyCached,
  enqueueSend,
  enqueueSendGrouped,
  type KernelCall,
} from './kernel-calls.js'
import { type BufferHandle, native } from './native.js'
import { emptyPlan, settledPlan, sharedArguments } from './plan.js'
import { type Filled, SlotViews } from './slot-views.js'

/** How a buffer is made. */
export interface IntranodeBufferOptions extends IntranodeBufferSizes {
  /** @default the cpu device */
  readonly device?: Device
  /** Deadline of every wait for a peer. @default the group's */
  readonly timeoutMs?: number
  /** Gives up the collective set-up. */
  readonly signal?: AbortSignal
}

/**
 * High-throughput dispatch and combine between ranks that map each other's memory. Made, called and closed by all ranks alike.
 *
 * Calls of one buffer may use several streams: a slot's next user waits for its last one.
 */
export class IntranodeBuffer implements Disposable {
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  readonly #memory: SymmetricMemory
  readonly #layout: BufferLayout
  readonly #views: SlotViews
  readonly #slots: SlotRing
  readonly #leases = new WeakMap<Lease, Event>()
  readonly #handle: BufferHandle
  #closed = false

  private constructor(memory: SymmetricMemory, layout: BufferLayout, timeoutMs: number) {
    this.group = memory.group
    this.device = memory.device
    this.timeoutMs = timeoutMs
    this.#memory = memory
    this.#layout = layout
    this.#views = new SlotViews(memory, layout)
    this.#slots = new SlotRing(layout.sizes.maxInFlight)
    this.#handle = native().createBuffer(memory.routes, layout.nativeFields)
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank, signals not counted. */
  static sizeHint(sizes: IntranodeBufferSizes, numRanks: number): number {
    requireInteger('numRanks', numRanks, 1)
    return layoutBuffer(sizes, numRanks).byteLength
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED when a rank lives on another node; ERR_MOE_EP_MISMATCH for sizes that
   *   differ; ERR_MOE_EP_OUT_OF_MEMORY; what the group fails with.
   */
  static async create(group: ProcessGroup, options: IntranodeBufferOptions): Promise<IntranodeBuffer> {
    const { device, timeoutMs = group.timeoutMs, signal, ...sizes } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    const layout = layoutBuffer(sizes, group.worldSize)
    if (group.topology.nodes > 1) {
      throw new MoeEpError(
        'ERR_MOE_EP_UNSUPPORTED',
        `an intranode buffer spans one node, the group has ${group.topology.nodes}`,
      )
    }
    const memory = await SymmetricMemory.create(group, {
      ...{ byteLength: layout.byteLength, numSignals: layout.numSignals, timeoutMs },
      ...(device !== undefined && { device }),
      ...(signal !== undefined && { signal }),
    })
    try {
      await requireSameLayout(group, layout, { timeoutMs, signal, label: 'intranode buffer' })
      return new IntranodeBuffer(memory, layout, timeoutMs)
    } catch (error) {
      memory.close()
      throw error
    }
  }

  /** The sizes that it was built for, defaults filled in. */
  get sizes(): Required<IntranodeBufferSizes> {
    return this.#layout.sizes
  }

  /** Slots that no lease holds. */
  get freeSlots(): number {
    return this.#slots.free
  }

  /** Why calls on this buffer fail from now on, if they do. */
  get failure(): MoeEpError | undefined {
    return this.group.failure ?? this.#memory.failure
  }

  /**
   * Sends each row once to every rank that has one of its experts, straight to its final place there. Resolves as soon as the
   * counts are known; the rows arrive in stream order (`event`).
   *
   * @param x [T, hidden] bf16, f16, f32, fp8 or u8, rows of a multiple of 16 bytes. T may be 0 and differ between ranks.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_CAPTURE and ERR_MOE_EP_NO_FREE_SLOT before anything is sent; ERR_MOE_EP_MISMATCH,
   *   ERR_MOE_EP_CAPACITY (with the true count) and ERR_MOE_EP_ARGUMENT for an id out of range on all ranks before a row is sent;
   *   ERR_MOE_EP_TIMEOUT naming rank, peer and what was missing; ERR_MOE_EP_PEER_LOST.
   */
  async dispatch(x: Tensor, options: DispatchOptions): Promise<DispatchResult> {
    checkDispatch(x, options, this.#context)
    const call = this.#begin(x, options)
    requireNotCapturing(call.stream)
    return this.#leased(call, async (lease) => {
      const { plan, counted } = this.#enqueueDispatch(call, lease, options, false)
      if (options.plan === undefined) await settled(counted, call.stream)
      const counts = options.plan ?? settledPlan(plan)
      const result = this.#views.dispatchResult(this.#filled(x, lease, counts), options)
      if (options.out === undefined) return result
      const copied = copyOut(call.stream, result, options.out)
      this.#leases.set(lease, call.stream.record())
      return { ...result, ...copied, event: this.#leases.get(lease)! }
    })
  }

  /**
   * The same without a wait for counts: results have as many rows as the buffer's capacity, of which the first
   * `rankPrefixMatrix[R-1][rank]` are filled and the others have ids of -1 and weights of 0. Enqueued; can be captured.
   * @throws as {@link dispatch}, what is found out by the kernels at the next await of the stream.
   */
  dispatchWorstCase(x: Tensor, options: Omit<DispatchOptions, 'out'>): DispatchResult {
    checkDispatch(x, options, this.#context)
    const call = this.#begin(x, options)
    const lease = this.#acquire(call)
    try {
      const { plan } = this.#enqueueDispatch(call, lease, options, true)
      const bound = { ...plan, numRecvTokens: this.sizes.capacity }
      const result = this.#views.dispatchResult(this.#filled(x, lease, bound), options)
      return { ...result, numRecvTokensPerExpert: new Int32Array(0) }
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /**
   * Sends a row for each selection straight into the contiguous layout of grouped GEMMs on the expert's rank: what permute would
   * make of a plain dispatch, without the pass. Resolves as soon as the counts are known. The buffer's capacity counts grouped
   * rows: see `maxGroupedRows`.
   * @throws as {@link dispatch}.
   */
  async dispatchGrouped(x: Tensor, options: GroupedDispatchOptions): Promise<GroupedDispatchResult> {
    checkGroupedDispatch(x, options, this.#context)
    const call = this.#begin(x, options)
    requireNotCapturing(call.stream)
    return this.#leased(call, async (lease) => {
      const { topkIdx, scales, fill = -1, zeroPadding = false } = options
      const { plan, counted, kernel } = this.#enqueueCounts(call, lease, options, topkIdx.shape[1]!)
      enqueueSendGrouped(kernel, { x, scales, topkIdx, fill, zeroPadding }, plan)
      this.#leases.set(lease, call.stream.record())
      if (options.plan === undefined) await settled(counted, call.stream)
      return this.#views.groupedResult(this.#filled(x, lease, options.plan ?? settledPlan(plan)), options)
    })
  }

  /**
   * Brings rows home: for each token of this rank the f32 sum, in rank order, of the rows that stand for it on other ranks, then the
   * biases, rounded once. Weights must have been applied to the rows. Enqueued; ends the lease.
   *
   * @param x [rows, hidden] bf16, f16 or f32: row i belongs to the token of recvX's row i. May be `combineInput(handle)`.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED when the lease has ended; on await of the event or stream as in dispatch.
   */
  combine(x: Tensor, handle: DispatchHandle, options: CombineOptions = {}): CombineResult {
    const { plan, lease } = handle
    this.#requireLease(lease)
    const combinedX = this.#combineOutput(x, plan, options)
    const { topkWeights } = options
    if (topkWeights !== undefined) {
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: [plan.numRecvTokens, null] })
      requireInteger('topk', topkWeights.shape[1], 1, this.sizes.maxTopk)
    }
    const biases = options.bias === undefined ? [] : [options.bias].flat()
    if (biases.length > 2) throw argumentError('bias', 'at most two', biases.length)
    for (const bias of biases) requireTensor('bias', bias, { dtype: x.dtype, shape: combinedX.shape })
    const combinedTopkWeights = topkWeights && Tensor.zeros([plan.numTokens, topkWeights.shape[1]!], 'f32', this.device)
    const kernel = this.#enter(lease, options)
    const staged = this.#views.isStaged(x, lease.slot)
    enqueueCombine(kernel, { x, staged, topkWeights, biases, combinedX, combinedTopkWeights }, plan)
    return { combinedX, combinedTopkWeights, event: this.#leave(lease, kernel.stream) }
  }

  /**
   * Brings grouped rows home with weights applied: for each token and rank the weighted f32 sum of its rows in slot order, rounded
   * as an unpermute would leave it; then the sum over ranks as in {@link combine}. Enqueued; ends the lease.
   * @throws as {@link combine}; ERR_MOE_EP_ARGUMENT when weights were given neither here nor at the dispatch.
   */
  combineGrouped(x: Tensor, handle: GroupedDispatchHandle, options: GroupedCombineOptions = {}): CombineResult {
    const { plan, lease, topkIdx } = handle
    this.#requireLease(lease)
    const combinedX = this.#combineOutput(x, plan, options)
    const topkWeights = options.topkWeights ?? handle.topkWeights
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    const kernel = this.#enter(lease, options)
    const staged = this.#views.isStaged(x, lease.slot)
    enqueueCombineGrouped(kernel, { x, staged, topkIdx, topkWeights, combinedX }, plan)
    return { combinedX, combinedTopkWeights: undefined, event: this.#leave(lease, kernel.stream) }
  }

  /**
   * Memory of the lease that combine reads without a staging copy: [rows, hidden]. It is the memory of recvX: write it only when
   * recvX is not needed any more.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED when the lease has ended.
   */
  combineInput(handle: DispatchHandle | GroupedDispatchHandle, options: CombineInputOptions = {}): Tensor {
    this.#requireLease(handle.lease)
    const { dtype = handle.dtype, hidden = handle.hidden } = options
    const input = this.#views.tensor(handle.lease.slot, 'rows', [handle.plan.numRecvTokens, hidden], dtype)
    requireRows('combineInput', input, this.sizes)
    return input
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

  get #context(): CheckContext {
    return { sizes: this.sizes, rank: this.group.rank, numRanks: this.group.worldSize }
  }

  #begin(x: Tensor, options: CallOptions & { readonly slot?: number }): Call {
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, previousEvent, slot } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    return { x, stream, timeoutMs, previousEvent, slot }
  }

  /** Takes a slot, and orders the stream after the slot's last user. */
  #acquire({ stream, previousEvent, slot }: Call): Lease {
    const lease = this.#slots.acquire(slot)
    if (previousEvent !== undefined) stream.wait(previousEvent)
    if (lease.previous !== undefined) stream.wait(lease.previous)
    return lease
  }

  async #leased<Result>(call: Call, body: (lease: Lease) => Promise<Result>): Promise<Result> {
    const lease = this.#acquire(call)
    try {
      return await body(lease)
    } catch (error) {
      lease.release(call.stream.closed ? undefined : call.stream.record())
      throw error
    }
  }

  /** Enqueues the first half of a dispatch. With `groupedTopk`, rows have a place for each selection. */
  #enqueueCounts(call: Call, lease: Lease, options: DispatchOptions, groupedTopk: number | undefined): Counted {
    const { x, stream, timeoutMs } = call
    const { topkIdx, topkWeights, scales, numExperts, numChannels } = options
    const kernel: KernelCall = { buffer: this.#handle, slot: lease.slot, stream, timeoutMs }
    const agreed = { lease: lease.id, x, scales, topkIdx, hasWeights: topkWeights !== undefined }
    if (options.plan !== undefined) {
      enqueueNotifyCached(kernel, sharedArguments({ ...agreed, cached: true }, options.plan), options.plan)
      return { kernel, plan: options.plan, counted: stream.record() }
    }
    const plan = emptyPlan({
      ...{ device: this.device, rank: this.group.rank, numRanks: this.group.worldSize, groupedTopk },
      ...{ numTokens: x.shape[0]!, numExperts: numExperts!, numChannels, maxChannels: this.sizes.maxChannels },
      expertAlignment: options.expertAlignment ?? (groupedTopk === undefined ? 1 : 128),
    })
    enqueueNotify(kernel, sharedArguments({ ...agreed, cached: false }, plan), topkIdx!, plan)
    return { kernel, plan, counted: stream.record() }
  }

  #enqueueDispatch(call: Call, lease: Lease, options: DispatchOptions, fillTail: boolean): Counted {
    const counted = this.#enqueueCounts(call, lease, options, undefined)
    const { scales, topkIdx, topkWeights } = options
    enqueueSend(counted.kernel, { x: call.x, scales, topkIdx, topkWeights, fillTail }, counted.plan)
    this.#leases.set(lease, call.stream.record())
    return counted
  }

  #filled(x: Tensor, lease: Lease, plan: DispatchPlan): Filled {
    return { x, lease, plan, event: this.#leases.get(lease)! }
  }

  #combineOutput(x: Tensor, plan: DispatchPlan, options: { readonly out?: Tensor }): Tensor {
    requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [plan.numRecvTokens, null] })
    requireRows('x', x, this.sizes)
    const shape = [plan.numTokens, x.shape[1]!]
    const combinedX = options.out ?? Tensor.zeros(shape, x.dtype, this.device)
    requireTensor('out', combinedX, { dtype: x.dtype, shape })
    return combinedX
  }

  /** Orders a combine's stream after the dispatch that filled the lease. */
  #enter(lease: Lease, options: CallOptions): KernelCall {
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, previousEvent } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    if (previousEvent !== undefined) stream.wait(previousEvent)
    stream.wait(this.#leases.get(lease)!)
    return { buffer: this.#handle, slot: lease.slot, stream, timeoutMs }
  }

  #leave(lease: Lease, stream: Stream): Event {
    const event = stream.record()
    lease.release(event)
    return event
  }

  #requireLease(lease: Lease): void {
    if (!this.#leases.has(lease)) throw argumentError('handle', 'a handle of this buffer', 'one of another')
    if (!lease.active) throw new MoeEpError('ERR_MOE_EP_RELEASED', "the dispatch's lease has ended")
  }
}

/** Waits for the counts. On failure the stream's own record of it is taken too: the caller hears of it here, once. */
async function settled(counted: Event, stream: Stream): Promise<void> {
  try {
    await counted.synchronize()
  } catch (error) {
    await stream.synchronize().catch(() => {})
    throw error
  }
}

/** Different sizes may happen to need as many bytes, so the places themselves are compared. */
async function requireSameLayout(group: ProcessGroup, layout: BufferLayout, wait: CollectiveOptions): Promise<void> {
  const own = layout.nativeFields.join(' ')
  const all = (await group.allGather(Buffer.from(own), wait)).map((bytes) => Buffer.from(bytes).toString())
  const different = all.findIndex((fields) => fields !== all[0])
  if (different < 0) return
  throw new MoeEpError(
    'ERR_MOE_EP_MISMATCH',
    `intranode buffer: rank ${different} was built with other sizes than rank 0`,
  )
}

interface Call {
  readonly x: Tensor
  readonly stream: Stream
  readonly timeoutMs: number
  readonly previousEvent: Event | undefined
  readonly slot: number | undefined
}

/** The first half of a dispatch: its plan is complete at `counted`. */
interface Counted {
  readonly kernel: KernelCall
  readonly plan: DispatchPlan
  readonly counted: Event
}
