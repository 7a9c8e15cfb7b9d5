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
import { defaultNumChannels, linearPlacement } from '@moe-ep/layout'
import { type CollectiveOptions, type Lease, type ProcessGroup, SlotRing, SymmetricMemory } from '@moe-ep/transport'
import { type BufferLayout, type IntranodeBufferSizes, layoutBuffer } from './buffer-layout.js'
import { checkDispatch, requireRows } from './dispatch-arguments.js'
import type { DispatchHandle, DispatchPlan } from './dispatch-handle.js'
import { type BufferHandle, native } from './native.js'

/** How a buffer is made. */
export interface IntranodeBufferOptions extends IntranodeBufferSizes {
  /** @default the cpu device */
  readonly device?: Device
  /** Deadline of every wait for a peer. @default the group's */
  readonly timeoutMs?: number
  /** Gives up the collective set-up. */
  readonly signal?: AbortSignal
}

/** Options that dispatch and combine share. */
export interface CallOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Work that must be done first. */
  readonly previousEvent?: Event
  /** Deadline of this call's waits for peers. @default the buffer's */
  readonly timeoutMs?: number
}

/** What is sent along with the rows, and where. Either `topkIdx` and `numExperts`, or a `plan`. */
export interface DispatchOptions extends CallOptions {
  /** i32 or i64 [T, K]: global expert ids, -1 for none. */
  readonly topkIdx?: Tensor
  /** f32 [T, K]: forwarded to the ranks of the experts. */
  readonly topkWeights?: Tensor
  /** Experts of all ranks together, linearly placed. */
  readonly numExperts?: number
  /** f32 [T, G]: scales of the rows, forwarded with them. */
  readonly scales?: Tensor
  /** Layout of an earlier dispatch with the same routing: counts are not exchanged again. All ranks pass one, or none does. */
  readonly plan?: DispatchPlan
  /** Rounds the counts per expert up. @default 1 */
  readonly expertAlignment?: number
  /** @default 10 */
  readonly numChannels?: number
  /** Slot to use, the same on all ranks. @default the lowest free one */
  readonly slot?: number
}

/** What arrived. Tensors lie in the lease's slot: read them before the lease ends. */
export interface DispatchResult {
  /** [rows, hidden], dtype of x: ordered by source rank, then by token. */
  readonly recvX: Tensor
  /** f32 [rows, G], when scales were sent. */
  readonly recvXScales: Tensor | undefined
  /** [rows, K], dtype of topkIdx: local expert ids, -1 for experts of other ranks. Undefined with a plan. */
  readonly recvTopkIdx: Tensor | undefined
  /** f32 [rows, K]: 0 where the id is -1. */
  readonly recvTopkWeights: Tensor | undefined
  /** Selections of each local expert, rounded up to expertAlignment. */
  readonly numRecvTokensPerExpert: Int32Array
  readonly handle: DispatchHandle
  /** Complete when the rows have arrived. */
  readonly event: Event
}

/** What a combine gives. */
export interface CombineResult {
  /** [T, hidden], dtype of x: for each token of this rank the sum over ranks of its rows; zeros when it was sent nowhere. */
  readonly combinedX: Tensor
  /** Complete when combinedX is. */
  readonly event: Event
}

/** High-throughput dispatch and combine between ranks that map each other's memory. Made and closed by all ranks alike. */
export class IntranodeBuffer implements Disposable {
  readonly group: ProcessGroup
  readonly device: Device
  readonly timeoutMs: number
  readonly #memory: SymmetricMemory
  readonly #layout: BufferLayout
  readonly #slots: SlotRing
  readonly #handle: BufferHandle
  /** A handle of another buffer would name a slot that means something else here. */
  readonly #leases = new WeakSet<Lease>()
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
      throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', `an intranode buffer spans one node, the group has ${group.topology.nodes}`)
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
   * @throws ERR_MOE_EP_ARGUMENT and ERR_MOE_EP_NO_FREE_SLOT before anything is sent; ERR_MOE_EP_MISMATCH and
   *   ERR_MOE_EP_CAPACITY (with the true count) on all ranks before a row is sent; ERR_MOE_EP_TIMEOUT naming rank, peer and what
   *   was missing; ERR_MOE_EP_PEER_LOST.
   */
  async dispatch(x: Tensor, options: DispatchOptions): Promise<DispatchResult> {
    checkDispatch(x, options, this.sizes, this.group.worldSize)
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, slot, previousEvent } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    const lease = this.#slots.acquire(slot)
    this.#leases.add(lease)
    try {
      if (previousEvent !== undefined) stream.wait(previousEvent)
      const call = { x, options, stream, timeoutMs, slot: lease.slot }
      const plan = options.plan ?? this.#enqueueNotify(call)
      if (options.plan !== undefined) this.#enqueueNotifyCached(call, options.plan)
      const counted = stream.record()
      this.#enqueueSend(call, plan)
      const event = stream.record()
      if (options.plan === undefined) await this.#settled(counted, stream)
      return this.#result(call, this.#withCounts(plan), lease, event)
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /**
   * Brings rows home: for each token of this rank the f32 sum, in rank order, of the rows that stand for it on other ranks, rounded
   * once. Weights must have been applied. Enqueued; ends the lease.
   *
   * @param x [rows, hidden] bf16, f16 or f32: row i belongs to the token of recvX's row i. May be `combineInput(handle)`.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED when the lease has ended; on await of the event or stream as in dispatch.
   */
  combine(x: Tensor, handle: DispatchHandle, options: CallOptions & { readonly out?: Tensor } = {}): CombineResult {
    this.#requireLease(handle)
    requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [handle.plan.numRecvTokens, null] })
    const rowBytes = requireRows('x', x, this.sizes)
    const { stream = this.device.defaultStream, timeoutMs = this.timeoutMs, previousEvent } = options
    requireInteger('timeoutMs', timeoutMs, 1)
    const shape = [handle.plan.numTokens, x.shape[1]!]
    const combinedX = options.out ?? Tensor.zeros(shape, x.dtype, this.device)
    requireTensor('out', combinedX, { dtype: x.dtype, shape })
    if (previousEvent !== undefined) stream.wait(previousEvent)
    const { plan, lease } = handle
    // Staging reads and writes every received row, the sum reads every row that was sent and writes one for each token.
    const bytes = (): number => (2 * plan.numRecvTokens + sum(plan.numTokensPerRank) + plan.numTokens) * rowBytes
    traceOperation('intranode.combine', stream, bytes, () =>
      native().combine(
        ...([stream.handle, this.#handle, lease.slot, x.handle, plan.numTokensPerRank.handle] as const),
        ...([plan.sendHead.handle, combinedX.handle, timeoutMs] as const),
      ),
    )
    lease.release()
    return { combinedX, event: stream.record() }
  }

  /**
   * Memory of the lease that combine reads without a staging copy: [rows, hidden]. It is the memory of recvX: write it only when
   * recvX is not needed any more.
   * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED when the lease has ended.
   */
  combineInput(handle: DispatchHandle, options: { readonly dtype?: DType; readonly hidden?: number } = {}): Tensor {
    this.#requireLease(handle)
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

  #requireLease({ lease }: DispatchHandle): void {
    if (!this.#leases.has(lease)) throw argumentError('handle', 'a handle of this buffer', 'one of another')
    if (!lease.active) throw new MoeEpError('ERR_MOE_EP_RELEASED', "the dispatch's lease has ended")
  }

  #enqueueNotify(call: Call): DispatchPlan {
    const { options, stream } = call
    const { worldSize, rank } = this.group
    const { topkIdx, numExperts, numChannels = defaultNumChannels, expertAlignment = 1 } = options as FreshOptions
    const [numTokens] = call.x.shape as [number, number]
    const { begin, end } = linearPlacement(numExperts, worldSize).rangeOf(rank)
    const zeros = (shape: readonly number[], dtype: DType): Tensor => Tensor.zeros(shape, dtype, this.device)
    const plan = {
      ...{ numTokens, numExperts, numChannels, expertAlignment, numRecvTokens: 0 },
      numTokensPerRank: zeros([worldSize], 'i32'),
      numTokensPerExpert: zeros([numExperts], 'i32'),
      isTokenInRank: zeros([numTokens, worldSize], 'bool'),
      rankPrefixMatrix: zeros([worldSize, worldSize], 'i32'),
      channelPrefixMatrix: zeros([worldSize, numChannels], 'i32'),
      recvChannelPrefixMatrix: zeros([worldSize, numChannels], 'i32'),
      sendHead: zeros([numTokens, worldSize], 'i32'),
      numRecvTokensPerExpert: zeros([end - begin], 'i32'),
    }
    traceOperation('intranode.notify', stream, topkIdx.byteLength + plan.sendHead.byteLength, () =>
      native().notify(
        ...([stream.handle, this.#handle, call.slot, sharedArguments(call, plan), topkIdx.handle] as const),
        ...([plan.numTokensPerRank.handle, plan.numTokensPerExpert.handle, plan.isTokenInRank.handle] as const),
        ...([plan.rankPrefixMatrix.handle, plan.channelPrefixMatrix.handle, plan.recvChannelPrefixMatrix.handle] as const),
        ...([plan.sendHead.handle, plan.numRecvTokensPerExpert.handle, call.timeoutMs] as const),
      ),
    )
    return plan
  }

  #enqueueNotifyCached(call: Call, plan: DispatchPlan): void {
    traceOperation('intranode.notify', call.stream, 0, () =>
      native().notifyCached(
        ...([call.stream.handle, this.#handle, call.slot, sharedArguments(call, plan)] as const),
        ...([plan.rankPrefixMatrix.handle, call.timeoutMs] as const),
      ),
    )
  }

  #enqueueSend(call: Call, plan: DispatchPlan): void {
    const { scales, topkIdx, topkWeights } = call.options
    const rowBytes = (call.x.shape[1]! * dtypes[call.x.dtype].bits) / 8
    // Every row is read once for each rank that gets it, and written there.
    const sentBytes = (): number => 2 * rowBytes * sum(plan.numTokensPerRank)
    traceOperation('intranode.send', call.stream, sentBytes, () =>
      native().send(
        ...([call.stream.handle, this.#handle, call.slot, plan.numExperts, call.x.handle, scales?.handle] as const),
        ...([topkIdx?.handle, topkWeights?.handle, plan.sendHead.handle, call.timeoutMs] as const),
      ),
    )
  }

  /** Waits for the counts. On failure the stream's own record of it is taken too: the caller hears of it here, once. */
  async #settled(event: Event, stream: Stream): Promise<void> {
    try {
      await event.synchronize()
    } catch (error) {
      await stream.synchronize().catch(() => {})
      throw error
    }
  }

  /** The plan with the number of rows, which only now can be read. */
  #withCounts(plan: DispatchPlan): DispatchPlan {
    const { worldSize, rank } = this.group
    const numRecvTokens = Number(plan.rankPrefixMatrix.data[(worldSize - 1) * worldSize + rank])
    return { ...plan, numRecvTokens }
  }

  #result(call: Call, plan: DispatchPlan, lease: Lease, event: Event): DispatchResult {
    const { x, options } = call
    const rows = plan.numRecvTokens
    const hidden = x.shape[1]!
    const view = (region: SlotRegion, columns: number, dtype: DType): Tensor =>
      this.#slotTensor(lease.slot, region, [rows, columns], dtype)
    const { topkIdx, topkWeights, scales } = options
    return {
      recvX: view('rows', hidden, x.dtype),
      recvXScales: scales && view('scales', scales.shape[1]!, 'f32'),
      recvTopkIdx: topkIdx && view('topkIdx', topkIdx.shape[1]!, topkIdx.dtype),
      recvTopkWeights: topkWeights && view('topkWeights', topkWeights.shape[1]!, 'f32'),
      numRecvTokensPerExpert: Int32Array.from(plan.numRecvTokensPerExpert.data as Int32Array),
      handle: { plan, lease, hidden, dtype: x.dtype, recvSrcIdx: this.#slotTensor(lease.slot, 'sourceIndex', [rows], 'i32') },
      event,
    }
  }

  #slotTensor(slot: number, region: SlotRegion, shape: readonly number[], dtype: DType): Tensor {
    const { byteOffset, byteLength } = this.#layout[region]
    const tensor = this.#memory.tensor({ byteOffset: slot * this.#layout.slotBytes + byteOffset, shape, dtype })
    if (tensor.byteLength > byteLength) throw argumentError('shape', `at most ${byteLength} bytes`, tensor.toString())
    return tensor
  }
}

/** Different sizes may happen to need as many bytes, so the places themselves are compared. */
async function requireSameLayout(group: ProcessGroup, layout: BufferLayout, wait: CollectiveOptions): Promise<void> {
  const own = layout.nativeFields.join(' ')
  const all = (await group.allGather(Buffer.from(own), wait)).map((bytes) => Buffer.from(bytes).toString())
  const different = all.findIndex((fields) => fields !== all[0])
  if (different < 0) return
  throw new MoeEpError('ERR_MOE_EP_MISMATCH', `intranode buffer: rank ${different} was built with other sizes than rank 0`)
}

type SlotRegion = 'rows' | 'scales' | 'topkIdx' | 'topkWeights' | 'sourceIndex'
type FreshOptions = DispatchOptions & { readonly topkIdx: Tensor; readonly numExperts: number }

interface Call {
  readonly x: Tensor
  readonly options: DispatchOptions
  readonly stream: Stream
  readonly timeoutMs: number
  readonly slot: number
}

/** What all ranks must agree on, in the order of the native record. */
function sharedArguments({ x, options }: Call, plan: DispatchPlan): number[] {
  const { topkIdx, scales } = options
  return [
    Number(options.plan !== undefined),
    (x.shape[1]! * dtypes[x.dtype].bits) / 8,
    scales?.shape[1] ?? 0,
    topkIdx?.shape[1] ?? 0,
    topkIdx === undefined ? 0 : dtypes[topkIdx.dtype].bits / 8,
    ...[plan.numExperts, plan.numChannels, plan.expertAlignment],
    Number(options.topkWeights !== undefined),
    0, // the digest of a plan is the kernel's to fill in
  ]
}

function sum(counts: Tensor): number {
  return Array.from(counts.data, Number).reduce((total, count) => total + count, 0)
}
