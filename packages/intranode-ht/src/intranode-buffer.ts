import {
  argumentError,
  type Device,
  type DType,
  dtypes,
  type Event,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
  traceOperation,
} from '@moe-ep/core'
import { type CollectiveOptions, type Lease, type ProcessGroup, SlotRing, SymmetricMemory } from '@moe-ep/transport'
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
import { type BufferHandle, native } from './native.js'
import { emptyPlan, settledPlan, sharedArguments, sum } from './plan.js'

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
      const planned = this.#enqueueDispatch(call, lease, options, false)
      const plan = options.plan ?? settledPlan(await this.#settled(planned, call.stream))
      const result = this.#result(call, lease, options, plan, plan.numRecvTokens)
      return options.out === undefined ? result : this.#copyOut(call, lease, result, options.out)
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
      const { capacity } = this.sizes
      const result = this.#result(call, lease, options, { ...plan, numRecvTokens: capacity }, capacity)
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
      const planned = this.#enqueueGrouped(call, lease, options)
      const plan = options.plan ?? settledPlan(await this.#settled(planned, call.stream))
      return this.#groupedResult(call, lease, options, plan)
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
    const { rowBytes, combinedX } = this.#combineOutput(x, plan, options)
    const { topkWeights } = options
    if (topkWeights !== undefined) {
      requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: [plan.numRecvTokens, null] })
      requireInteger('topk', topkWeights.shape[1], 1, this.sizes.maxTopk)
    }
    const biases = options.bias === undefined ? [] : [options.bias].flat()
    if (biases.length > 2) throw argumentError('bias', 'at most two', biases.length)
    for (const bias of biases) requireTensor('bias', bias, { dtype: x.dtype, shape: combinedX.shape })
    const combinedTopkWeights = topkWeights && Tensor.zeros([plan.numTokens, topkWeights.shape[1]!], 'f32', this.device)
    const { stream, timeoutMs } = this.#enter(lease, options)
    // Staging reads and writes every received row, the sum reads every row that was sent and writes one for each token.
    const bytes = (): number => (2 * plan.numRecvTokens + sum(plan.numTokensPerRank) + plan.numTokens) * rowBytes
    traceOperation('intranode.combine', stream, bytes, () =>
      native().combine(
        ...([stream.handle, this.#handle, lease.slot, x.handle, topkWeights?.handle] as const),
        ...([plan.numTokensPerRank.handle, plan.rankPrefixMatrix.handle, plan.sendHead.handle] as const),
        ...([biases[0]?.handle, biases[1]?.handle, combinedX.handle, combinedTopkWeights?.handle, timeoutMs] as const),
      ),
    )
    return { combinedX, combinedTopkWeights, event: this.#leave(lease, stream) }
  }

  /**
   * Brings grouped rows home with weights applied: for each token and rank the weighted f32 sum of its rows in slot order, rounded
   * as an unpermute would leave it; then the sum over ranks as in {@link combine}. Enqueued; ends the lease.
   * @throws as {@link combine}; ERR_MOE_EP_ARGUMENT when weights were given neither here nor at the dispatch.
   */
  combineGrouped(x: Tensor, handle: GroupedDispatchHandle, options: GroupedCombineOptions = {}): CombineResult {
    const { plan, lease, topkIdx } = handle
    this.#requireLease(lease)
    const { rowBytes, combinedX } = this.#combineOutput(x, plan, options)
    const topkWeights = options.topkWeights ?? handle.topkWeights
    requireTensor('topkWeights', topkWeights, { dtype: 'f32', shape: topkIdx.shape })
    const { stream, timeoutMs } = this.#enter(lease, options)
    const bytes = (): number => (2 * plan.numRecvTokens + sum(plan.numTokensPerExpert) + plan.numTokens) * rowBytes
    traceOperation('intranode.combineGrouped', stream, bytes, () =>
      native().combineGrouped(
        ...([stream.handle, this.#handle, lease.slot, plan.numExperts, x.handle, topkIdx.handle] as const),
        ...([topkWeights.handle, plan.slotRow!.handle, plan.numTokensPerRank.handle] as const),
        ...([plan.numRecvTokensPerExpert.handle, combinedX.handle, timeoutMs] as const),
      ),
    )
    return { combinedX, combinedTopkWeights: undefined, event: this.#leave(lease, stream) }
  }

  /**
   * Memory of the lease that combine reads without a staging copy: [rows, hidden]. It is the memory of recvX: write it only when
   * recvX is not needed any more.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED when the lease has ended.
   */
  combineInput(handle: DispatchHandle | GroupedDispatchHandle, options: CombineInputOptions = {}): Tensor {
    this.#requireLease(handle.lease)
    const { dtype = handle.dtype, hidden = handle.hidden } = options
    const input = this.#slotTensor(handle.lease.slot, 'rows', [handle.plan.numRecvTokens, hidden], dtype)
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

  #enqueueNotify(
    call: Call,
    lease: Lease,
    routing: Routing,
    fresh: DispatchPlan | undefined,
  ): { plan: DispatchPlan; counted: Event } {
    const { stream, timeoutMs, x } = call
    const { topkIdx, topkWeights, scales } = routing
    const plan = fresh ?? routing.plan!
    const shared = sharedArguments(
      { lease: lease.id, cached: fresh === undefined, x, scales, topkIdx, hasWeights: topkWeights !== undefined },
      plan,
    )
    traceOperation('intranode.notify', stream, (topkIdx?.byteLength ?? 0) + plan.sendHead.byteLength, () =>
      fresh === undefined
        ? native().notifyCached(
            stream.handle,
            this.#handle,
            lease.slot,
            shared,
            plan.rankPrefixMatrix.handle,
            timeoutMs,
          )
        : native().notify(
            ...([stream.handle, this.#handle, lease.slot, shared, topkIdx!.handle] as const),
            ...([plan.numTokensPerRank.handle, plan.numTokensPerExpert.handle, plan.isTokenInRank.handle] as const),
            ...([plan.rankPrefixMatrix.handle, plan.channelPrefixMatrix.handle] as const),
            ...([
              plan.recvChannelPrefixMatrix.handle,
              plan.sendHead.handle,
              plan.numRecvTokensPerExpert.handle,
            ] as const),
            ...([plan.numRecvSelections.handle, plan.slotRow?.handle, timeoutMs] as const),
          ),
    )
    return { plan, counted: stream.record() }
  }

  #freshPlan(x: Tensor, options: DispatchOptions, groupedTopk: number | undefined): DispatchPlan {
    return emptyPlan({
      ...{ device: this.device, rank: this.group.rank, numRanks: this.group.worldSize, groupedTopk },
      ...{ numTokens: x.shape[0]!, numExperts: options.numExperts!, maxChannels: this.sizes.maxChannels },
      ...{
        numChannels: options.numChannels,
        expertAlignment: options.expertAlignment ?? (groupedTopk === undefined ? 1 : 128),
      },
    })
  }

  #enqueueDispatch(call: Call, lease: Lease, options: DispatchOptions, fillTail: boolean): Planned {
    const { x, stream, timeoutMs } = call
    const fresh = options.plan === undefined ? this.#freshPlan(x, options, undefined) : undefined
    const { plan, counted } = this.#enqueueNotify(call, lease, options, fresh)
    const { scales, topkIdx, topkWeights } = options
    // Every row is read once for each rank that gets it, and written there.
    const bytes = (): number => 2 * bytesOfRow(x) * sum(plan.numTokensPerRank)
    traceOperation('intranode.send', stream, bytes, () =>
      native().send(
        ...([
          stream.handle,
          this.#handle,
          lease.slot,
          plan.numExperts,
          x.handle,
          scales?.handle,
          topkIdx?.handle,
        ] as const),
        ...([topkWeights?.handle, plan.sendHead.handle, plan.numTokensPerRank.handle] as const),
        ...([plan.rankPrefixMatrix.handle, fillTail, timeoutMs] as const),
      ),
    )
    this.#leases.set(lease, stream.record())
    return { plan, counted }
  }

  #enqueueGrouped(call: Call, lease: Lease, options: GroupedDispatchOptions): Planned {
    const { x, stream, timeoutMs } = call
    const { topkIdx, scales, fill = -1, zeroPadding = false } = options
    const fresh = options.plan === undefined ? this.#freshPlan(x, options, topkIdx.shape[1]!) : undefined
    const { plan, counted } = this.#enqueueNotify(call, lease, options, fresh)
    const bytes = (): number => 2 * bytesOfRow(x) * sum(plan.numTokensPerExpert)
    traceOperation('intranode.sendGrouped', stream, bytes, () =>
      native().sendGrouped(
        ...([
          stream.handle,
          this.#handle,
          lease.slot,
          plan.numExperts,
          plan.expertAlignment,
          fill === 'expert',
        ] as const),
        ...([zeroPadding, x.handle, scales?.handle, topkIdx.handle, plan.slotRow!.handle] as const),
        ...([plan.numRecvSelections.handle, timeoutMs] as const),
      ),
    )
    this.#leases.set(lease, stream.record())
    return { plan, counted }
  }

  /** Waits for the counts. On failure the stream's own record of it is taken too: the caller hears of it here, once. */
  async #settled({ plan, counted }: Planned, stream: Stream): Promise<DispatchPlan> {
    try {
      await counted.synchronize()
      return plan
    } catch (error) {
      await stream.synchronize().catch(() => {})
      throw error
    }
  }

  #result(call: Call, lease: Lease, options: DispatchOptions, plan: DispatchPlan, rows: number): DispatchResult {
    const { x } = call
    const hidden = x.shape[1]!
    const view = (region: SlotRegion, columns: number, dtype: DType): Tensor =>
      this.#slotTensor(lease.slot, region, [rows, columns], dtype)
    const { topkIdx, topkWeights, scales } = options
    const recvSrcIdx = this.#slotTensor(lease.slot, 'sourceIndex', [rows], 'i32')
    return {
      recvX: view('rows', hidden, x.dtype),
      recvXScales: scales && view('scales', scales.shape[1]!, 'f32'),
      recvTopkIdx: topkIdx && view('topkIdx', topkIdx.shape[1]!, topkIdx.dtype),
      recvTopkWeights: topkWeights && view('topkWeights', topkWeights.shape[1]!, 'f32'),
      numRecvTokensPerExpert: Int32Array.from(plan.numRecvTokensPerExpert.data as Int32Array),
      handle: { plan, lease, hidden, dtype: x.dtype, recvSrcIdx },
      event: this.#leases.get(lease)!,
    }
  }

  #groupedResult(call: Call, lease: Lease, options: GroupedDispatchOptions, plan: DispatchPlan): GroupedDispatchResult {
    const { x } = call
    const { topkIdx, topkWeights, scales } = options
    const rows = plan.numRecvTokens
    const hidden = x.shape[1]!
    return {
      recvX: this.#slotTensor(lease.slot, 'rows', [rows, hidden], x.dtype),
      recvXScales: scales && this.#columnScales(lease.slot, rows, scales.shape[1]!),
      expertIds: this.#slotTensor(lease.slot, 'sourceIndex', [rows], 'i32'),
      numRecvTokensPerExpert: Int32Array.from(plan.numRecvTokensPerExpert.data as Int32Array),
      handle: { plan, lease, hidden, dtype: x.dtype, topkIdx, topkWeights },
      event: this.#leases.get(lease)!,
    }
  }

  /** Enqueues copies of what arrived into the caller's memory, and gives views of that instead. */
  #copyOut(
    { stream }: Call,
    lease: Lease,
    result: DispatchResult,
    out: NonNullable<DispatchOptions['out']>,
  ): DispatchResult {
    const copied: { -readonly [Name in keyof typeof out]: Tensor } = {}
    for (const name of ['recvX', 'recvXScales', 'recvTopkIdx', 'recvTopkWeights'] as const) {
      const target = out[name]
      if (target === undefined) continue
      const from = result[name]
      if (from === undefined)
        throw argumentError(`out.${name}`, 'nothing, for nothing of it was sent', target.toString())
      requireTensor(`out.${name}`, target, { dtype: from.dtype, shape: [null, from.shape[1]!] })
      const rows = from.shape[0]!
      if (target.shape[0]! < rows) {
        throw new MoeEpError('ERR_MOE_EP_CAPACITY', `out.${name}: ${rows} rows arrived, it has ${target.shape[0]}`)
      }
      const view = target.slice(0, rows)
      native().copyRows(stream.handle, from.handle, view.handle)
      copied[name] = view
    }
    const event = stream.record()
    this.#leases.set(lease, event)
    return { ...result, ...copied, event }
  }

  #combineOutput(
    x: Tensor,
    plan: DispatchPlan,
    options: { readonly out?: Tensor },
  ): { rowBytes: number; combinedX: Tensor } {
    requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [plan.numRecvTokens, null] })
    const rowBytes = requireRows('x', x, this.sizes)
    const shape = [plan.numTokens, x.shape[1]!]
    const combinedX = options.out ?? Tensor.zeros(shape, x.dtype, this.device)
    requireTensor('out', combinedX, { dtype: x.dtype, shape })
    return { rowBytes, combinedX }
  }

  /** Orders a combine's stream after the dispatch that filled the lease. */
  #enter(lease: Lease, options: CallOptions): { stream: Stream; timeoutMs: number } {
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, previousEvent } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    if (previousEvent !== undefined) stream.wait(previousEvent)
    stream.wait(this.#leases.get(lease)!)
    return { stream, timeoutMs }
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

  #slotTensor(slot: number, region: SlotRegion, shape: readonly number[], dtype: DType): Tensor {
    const { byteOffset, byteLength } = this.#layout[region]
    const tensor = this.#memory.tensor({ byteOffset: slot * this.#layout.slotBytes + byteOffset, shape, dtype })
    if (tensor.byteLength > byteLength) throw argumentError('shape', `at most ${byteLength} bytes`, tensor.toString())
    return tensor
  }

  #columnScales(slot: number, rows: number, columns: number): Tensor {
    const stride = Math.ceil(rows / 4) * 4
    const { memory, byteOffset } = this.#slotTensor(slot, 'columnScales', [columns, stride], 'f32')
    return new Tensor({ memory, dtype: 'f32', shape: [rows, columns], strides: [1, stride], byteOffset })
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

type SlotRegion = 'rows' | 'scales' | 'topkIdx' | 'topkWeights' | 'sourceIndex' | 'columnScales'
type Routing = Pick<DispatchOptions, 'topkIdx' | 'topkWeights' | 'scales' | 'plan'>

interface Call {
  readonly x: Tensor
  readonly stream: Stream
  readonly timeoutMs: number
  readonly previousEvent: Event | undefined
  readonly slot: number | undefined
}

/** A plan whose counts are complete at `counted`. */
interface Planned {
  readonly plan: DispatchPlan
  readonly counted: Event
}

function bytesOfRow(x: Tensor): number {
  return (x.shape[1]! * dtypes[x.dtype].bits) / 8
}
