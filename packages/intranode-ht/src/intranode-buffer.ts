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
import { type Lease, type ProcessGroup, requireSameLayout, SlotRing, SymmetricMemory } from '@moe-ep/transport'
import { type BufferLayout, type IntranodeBufferSizes, layoutBuffer } from './buffer-layout.js'
import { callOf } from './call-options.js'
import { combineBiases, combineOutput } from './combine-arguments.js'
import { checkOut, copyOut, roomFor } from './copy-out.js'
import { type CheckContext, checkDispatch, checkGroupedDispatch, requireRows } from './dispatch-arguments.js'
import type { DispatchHandle, DispatchPlan, GroupedDispatchHandle } from './dispatch-handle.js'
import { type Begun, DispatchMeetings } from './dispatch-meetings.js'
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
  RefuseOptions,
} from './dispatch-types.js'
import {
  enqueueCombine,
  enqueueCombineGrouped,
  enqueueSend,
  enqueueSendGrouped,
  type KernelCall,
} from './kernel-calls.js'
import { type BufferHandle, native } from './native.js'
import { Refuser } from './refuser.js'
import { rejected, releasedOnFailure } from './settled.js'
import { type Filled, SlotViews } from './slot-views.js'
import packageJson from '../package.json' with { type: 'json' }

const { version } = packageJson

/** How a buffer is made. */
export interface IntranodeBufferOptions extends IntranodeBufferSizes {
  /** Whose memory rows lie in, and whose streams run the calls. @default the default device (`getDefaultDevice()` of core) */
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
  readonly #refuser: Refuser
  readonly #meetings: DispatchMeetings
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
    const isGivenUp = (): boolean => this.failure !== undefined
    this.#refuser = new Refuser({ buffer: this.#handle, device: this.device, timeoutMs, isGivenUp })
    this.#meetings = new DispatchMeetings({
      ...{ buffer: this.#handle, group: this.group, device: this.device, timeoutMs },
      ...{ sizes: layout.sizes, slots: this.#slots, refuser: this.#refuser },
    })
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank, signals not counted. */
  static sizeHint(sizes: IntranodeBufferSizes, numRanks: number): number {
    requireInteger('numRanks', numRanks, 1)
    return layoutBuffer(sizes, numRanks).byteLength
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED when a rank lives on another node; ERR_MOE_EP_MISMATCH for sizes, or
   *   versions of this package, that differ; ERR_MOE_EP_OUT_OF_MEMORY; what the group fails with.
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
    await requireSameLayout(group, layout.nativeFields, { timeoutMs, signal, version, label: 'intranode buffer' })
    const memory = await SymmetricMemory.create(group, {
      ...{ byteLength: layout.byteLength, numSignals: layout.numSignals, timeoutMs },
      ...(device !== undefined && { device }),
      ...(signal !== undefined && { signal }),
    })
    try {
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
   * What is wrong on one rank is refused on all, before a row is sent: there with its own error, elsewhere with the same code and
   * a message that names the rank. The buffer works on.
   *
   * @param x [T, hidden] bf16, f16, f32, fp8 or u8, rows of a multiple of 16 bytes. T may be 0 and differ between ranks.
   * @throws ERR_MOE_EP_ARGUMENT (also for an id out of range), ERR_MOE_EP_CAPTURE, ERR_MOE_EP_NO_FREE_SLOT, ERR_MOE_EP_MISMATCH and
   *   ERR_MOE_EP_CAPACITY (with the true count) on all ranks before a row is sent; ERR_MOE_EP_TIMEOUT naming rank, peer and what was
   *   missing; ERR_MOE_EP_PEER_LOST; ERR_MOE_EP_RELEASED when the buffer was closed.
   */
  async dispatch(x: Tensor, options: DispatchOptions): Promise<DispatchResult> {
    this.#requireOpen()
    const begun = this.#meetings.begin(x, options, true, () => {
      checkDispatch(x, options, this.#context)
      checkOut(x, options)
      return { groupedTopk: undefined, room: roomFor(options.out, this.sizes.capacity) }
    })
    if ('error' in begun) return rejected(begun)
    const { lease, stream } = begun
    return releasedOnFailure(begun, async () => {
      this.#enqueueSend(x, options, begun, false)
      const counts = await this.#meetings.settledPlan(options, begun)
      const result = this.#views.dispatchResult(this.#filled(x, lease, counts), options)
      if (options.out === undefined) return result
      const copied = copyOut(stream, result, options.out)
      this.#filledBy(lease, stream.mark())
      return { ...result, ...copied, event: this.#leases.get(lease)! }
    })
  }

  /**
   * The same without a wait for counts: results have as many rows as the buffer's capacity, of which the first
   * `rankPrefixMatrix[R-1][rank]` are filled and the others have ids of -1 and weights of 0. Enqueued; can be captured.
   * @throws as {@link dispatch}, what is found out by the kernels, and what other ranks refuse, at the next await of the stream.
   *   A capture sends nothing, so what is refused in one is refused on this rank alone.
   */
  dispatchWorstCase(x: Tensor, options: Omit<DispatchOptions, 'out'>): DispatchResult {
    this.#requireOpen()
    const begun = this.#meetings.begin(x, options, false, () => {
      checkDispatch(x, options, this.#context)
      return { groupedTopk: undefined, room: this.sizes.capacity }
    })
    if ('error' in begun) {
      // Where nothing is awaited, the other ranks cannot give their leases back before they are told either.
      begun.lease?.release()
      throw begun.error
    }
    try {
      this.#enqueueSend(x, options, begun, true)
      const bound = { ...begun.plan, numRecvTokens: this.sizes.capacity }
      const result = this.#views.dispatchResult(this.#filled(x, begun.lease, bound), options)
      return { ...result, numRecvTokensPerExpert: new Int32Array(0) }
    } catch (error) {
      begun.lease.release()
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
    this.#requireOpen()
    const begun = this.#meetings.begin(x, options, true, () => {
      checkGroupedDispatch(x, options, this.#context)
      return { groupedTopk: options.topkIdx.shape[1]!, room: this.sizes.capacity }
    })
    if ('error' in begun) return rejected(begun)
    const { lease, kernel, plan, stream } = begun
    return releasedOnFailure(begun, async () => {
      const { topkIdx, scales, fill = -1, zeroPadding = false } = options
      enqueueSendGrouped(kernel, { x, scales, topkIdx, fill, zeroPadding }, plan)
      this.#filledBy(lease, stream.mark())
      return this.#views.groupedResult(
        this.#filled(x, lease, await this.#meetings.settledPlan(options, begun)),
        options,
      )
    })
  }

  /**
   * Takes part in the dispatch that the other ranks call next, with an error instead of rows: it is refused there as if dispatch had
   * refused it here. For callers that find out by themselves that this rank has nothing to dispatch, so that nobody waits for it.
   * Counts as a call of dispatch: takes its slot until the others are told, and then resolves.
   * @throws ERR_MOE_EP_RELEASED when the buffer was closed; what its wait for the others fails with.
   */
  async refuseDispatch(error: unknown, options: RefuseOptions = {}): Promise<void> {
    this.#requireOpen()
    const { lease, told } = this.#meetings.refuse(error, options)
    try {
      await told?.synchronize()
    } finally {
      lease?.release(told)
    }
  }

  /**
   * Brings rows home: for each token of this rank the f32 sum, in rank order, of the rows that stand for it on other ranks, then the
   * biases, rounded once. Weights must have been applied to the rows. Enqueued; ends the lease.
   *
   * What is wrong on one rank is refused on all, before a result is read, and ends the lease on all: the buffer works on. A capture
   * sends nothing, so what is refused in one is refused on this rank alone.
   *
   * @param x [rows, hidden] bf16, f16 or f32: row i belongs to the token of recvX's row i. May be `combineInput(handle)`.
   * @throws ERR_MOE_EP_ARGUMENT. Without a word to the others, for which lease they mean cannot be known: ERR_MOE_EP_ARGUMENT for a
   *   handle of another buffer, ERR_MOE_EP_RELEASED when the lease has ended or the buffer was closed. On await of the event or
   *   stream: what other ranks refuse; ERR_MOE_EP_MISMATCH on all ranks; as in dispatch.
   */
  combine(x: Tensor, handle: DispatchHandle, options: CombineOptions = {}): CombineResult {
    const { plan, lease } = handle
    this.#requireLease(lease)
    return this.#orRefuse(handle, options, () => {
      const combinedX = combineOutput(this, x, plan, options)
      const biases = combineBiases(this, combinedX, plan, options)
      const { topkWeights } = options
      const combinedTopkWeights =
        topkWeights && Tensor.empty([plan.numTokens, topkWeights.shape[1]!], 'f32', this.device)
      const kernel = this.#enter(lease, options)
      const staged = this.#views.isStaged(x, lease.slot)
      enqueueCombine(kernel, { x, staged, topkWeights, biases, combinedX, combinedTopkWeights }, plan)
      return { combinedX, combinedTopkWeights, event: this.#leave(lease, kernel.stream) }
    })
  }

  /**
   * Brings grouped rows home with weights applied: for each token and rank the weighted f32 sum of its rows in slot order, rounded
   * as an unpermute would leave it; then the sum over ranks as in {@link combine}. Enqueued; ends the lease.
   * @throws as {@link combine}; ERR_MOE_EP_ARGUMENT when weights were given neither here nor at the dispatch.
   */
  combineGrouped(x: Tensor, handle: GroupedDispatchHandle, options: GroupedCombineOptions = {}): CombineResult {
    const { plan, lease, topkIdx } = handle
    this.#requireLease(lease)
    return this.#orRefuse(handle, options, () => {
      const combinedX = combineOutput(this, x, plan, options)
      const topkWeights = options.topkWeights ?? handle.topkWeights
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
      const kernel = this.#enter(lease, options)
      const staged = this.#views.isStaged(x, lease.slot)
      enqueueCombineGrouped(kernel, { x, staged, topkIdx, topkWeights, combinedX }, plan)
      return { combinedX, combinedTopkWeights: undefined, event: this.#leave(lease, kernel.stream) }
    })
  }

  /**
   * Takes part in the combine of `handle` that the other ranks call, with an error instead of results: it is refused there, and the
   * lease ends here as there. For callers whose experts failed, so that nobody waits for them. Enqueued; does nothing when the lease
   * has ended.
   * @throws ERR_MOE_EP_ARGUMENT for a handle of another buffer; ERR_MOE_EP_RELEASED when the buffer was closed.
   */
  refuseCombine(
    { lease }: DispatchHandle | GroupedDispatchHandle,
    error: unknown,
    { stream }: Pick<RefuseOptions, 'stream'> = {},
  ): void {
    this.#requireOwn(lease)
    if (lease.active) lease.release(this.#refuser.combine(lease.slot, error, stream, this.#leases.get(lease)!))
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
    this.#meetings.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  get #context(): CheckContext {
    return { sizes: this.sizes, rank: this.group.rank, numRanks: this.group.worldSize }
  }

  #enqueueSend(x: Tensor, options: DispatchOptions, { kernel, plan, lease }: Begun, fillTail: boolean): void {
    const { scales, topkIdx, topkWeights } = options
    enqueueSend(kernel, { x, scales, topkIdx, topkWeights, fillTail }, plan)
    this.#filledBy(lease, kernel.stream.mark())
  }

  /** A lease that is released without a combine is in use until its rows are there. */
  #filledBy(lease: Lease, event: Event): void {
    this.#leases.set(lease, event)
    lease.useUntil(event)
  }

  #filled(x: Tensor, lease: Lease, plan: DispatchPlan): Filled {
    return { x, lease, plan, event: this.#leases.get(lease)! }
  }

  /** Orders a combine's stream after the dispatch that filled the lease. */
  #enter(lease: Lease, options: CallOptions): KernelCall {
    const { stream, timeoutMs, numSms } = callOf(this, options)
    if (options.previousEvent !== undefined) stream.wait(options.previousEvent)
    stream.wait(this.#leases.get(lease)!)
    return { buffer: this.#handle, slot: lease.slot, stream, timeoutMs, numSms }
  }

  #leave(lease: Lease, stream: Stream): Event {
    const event = stream.mark()
    lease.release(event)
    return event
  }

  /** Tells the other ranks why a combine did not come about, and passes the error on. */
  #orRefuse<Result>(
    handle: DispatchHandle | GroupedDispatchHandle,
    options: CallOptions,
    enqueue: () => Result,
  ): Result {
    try {
      return enqueue()
    } catch (thrown) {
      const error = MoeEpError.from(thrown)
      this.refuseCombine(handle, error, options)
      throw error
    }
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the buffer was closed')
  }

  #requireOwn(lease: Lease): void {
    this.#requireOpen()
    if (!this.#leases.has(lease)) throw argumentError('handle', 'a handle of this buffer', 'one of another')
  }

  #requireLease(lease: Lease): void {
    this.#requireOwn(lease)
    if (!lease.active) throw new MoeEpError('ERR_MOE_EP_RELEASED', "the dispatch's lease has ended")
  }
}
