import {
  argumentError,
  type CudaDevice,
  type Device,
  type DType,
  type ErrorCode,
  getDefaultDevice,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
} from '@moe-ep/core'
import { native, type RoutesHandle } from '../native.js'
import type { ProcessGroup } from '../rendezvous/index.js'
import { agree, type SharingChoice, type Wish, wishOf } from './agreement.js'
import { CpuSegments } from './cpu-segments.js'
import { CudaSegments } from './cuda-segments.js'
import type { SegmentSizes, SetUpWait, SharedSegments, Sharing } from './shared-segments.js'

/** How a symmetric memory is made. All ranks pass the same sizes. */
export interface SymmetricMemoryOptions {
  /** Payload bytes on every rank. They never grow. */
  readonly byteLength: number
  /** 64-bit signals on every rank. @default 0 */
  readonly numSignals?: number
  /** Where this rank's part lies; devices of one kind on all ranks. Ranks may share a GPU. @default the default device */
  readonly device?: Device
  /**
   * How memory of cuda devices is shared, the same on all ranks. By `vmm` a mapping outlives the rank that made it; by `ipc`, CUDA's
   * older handles, it does not outlive that rank's process, and memory that a killed process had mapped stays until its owner ends.
   * @default 'auto': `vmm` where all drivers can, else `ipc`; {@link SymmetricMemory.sharing} says which
   */
  readonly sharing?: SharingChoice
  /**
   * Waits go on when the group has lost a rank (ERR_MOE_EP_PEER_LOST), for those who can do without it; other failures of the group end
   * them all the same.
   * @default false
   */
  readonly outlivesPeers?: boolean
  /** Deadline of the collective set-up. @default the group's */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

/** How a rank is reached: itself, mapped memory, or not by this memory. */
export type RouteKind = 'self' | 'peer' | 'none'

/** Where a single put or signal goes. */
export interface PeerTarget {
  readonly peer: number
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** One of several puts. */
export interface Put {
  readonly source: Tensor
  readonly peer: number
  /** Where it goes in the peer's payload. */
  readonly byteOffset: number
}

export interface PutAllOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Multiprocessors of a cuda device; 0 for the default, 16, which saturate the links. @default 0 */
  readonly numSms?: number
}

/**
 * One collective allocation of the same size on every rank. Ranks of the same node map each other's bytes; a mapping outlives
 * the memory of the rank that made it, so ranks may close in any order. Freed by `close()`, in the order of the streams' work.
 */
export class SymmetricMemory implements Disposable {
  readonly group: ProcessGroup
  readonly device: Device
  /** Payload bytes of each rank. */
  readonly byteLength: number
  readonly numSignals: number
  /** Ranks whose memory lies on this rank's GPU, or machine on the cpu; itself among them. */
  readonly ranksOnDevice: number
  readonly #segments: SharedSegments
  readonly #routes: RoutesHandle
  readonly #stopListening: () => void
  #closed = false

  private constructor(parts: {
    group: ProcessGroup
    device: Device
    byteLength: number
    numSignals: number
    segments: SharedSegments
    ranksOnDevice: number
    outlivesPeers: boolean
  }) {
    const { group, segments } = parts
    this.group = group
    this.device = parts.device
    this.byteLength = parts.byteLength
    this.numSignals = parts.numSignals
    this.ranksOnDevice = parts.ranksOnDevice
    this.#segments = segments
    this.#routes = segments.createRoutes()
    // Kernels that wait for a lost peer end with the group's failure instead of their own deadline.
    this.#stopListening = group.onFailure((error) => {
      if (parts.outlivesPeers && error.code === 'ERR_MOE_EP_PEER_LOST') return
      if (!this.#closed) native().poison(this.#routes, error.code, error.message, false)
    })
  }

  /**
   * Allocates on all ranks of the group; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_MISMATCH when ranks pass different sizes, kinds of devices or ways of sharing;
   *   ERR_MOE_EP_OUT_OF_MEMORY with the bytes, and ERR_MOE_EP_UNSUPPORTED where a driver or a build cannot what was asked for, on all
   *   ranks alike; ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_ABORTED and ERR_MOE_EP_CONNECT, which fail the group, and so does ERR_MOE_EP_INTERNAL
   *   when a peer's GPU cannot be reached; what the group fails with.
   */
  static async create(group: ProcessGroup, options: SymmetricMemoryOptions): Promise<SymmetricMemory> {
    const { byteLength, numSignals = 0, device = getDefaultDevice(), sharing = 'auto', outlivesPeers = false } = options
    const { timeoutMs = group.timeoutMs, signal } = options
    requireInteger('byteLength', byteLength, 0)
    requireInteger('numSignals', numSignals, 0, 2 ** 24)
    requireSharing(sharing, device)
    const sizes = { byteLength, numSignals }
    const wait = { timeoutMs, signal, label: 'symmetric memory' }
    const { sharing: agreed, ranksOnDevice } = await agree(group, askDevice(group, device, sizes, sharing), wait)
    // A rank without memory must not leave the others waiting for its descriptor: all hear of it first.
    const segments = await allocateTogether(group, wait, () =>
      agreed === 'memfd'
        ? new CpuSegments(device, group, sizes)
        : new CudaSegments(device as CudaDevice, group, sizes, agreed),
    )
    try {
      await segments.mapPeers(group, wait)
      await group.barrier(wait)
      return new SymmetricMemory({ group, device, byteLength, numSignals, segments, ranksOnDevice, outlivesPeers })
    } catch (error) {
      segments.close()
      // The others wait for this rank: they hear the reason now instead of their own deadline later.
      group.abort(MoeEpError.from(error))
      throw error
    } finally {
      segments.endSetUp()
    }
  }

  /** How ranks of a node share memory, the same on all ranks. */
  get sharing(): Sharing {
    return this.#segments.sharing
  }

  /** How this rank reaches another. */
  routeTo(rank: number): RouteKind {
    requireInteger('rank', rank, 0, this.group.worldSize - 1)
    if (rank === this.group.rank) return 'self'
    return this.#segments.memories[rank] === undefined ? 'none' : 'peer'
  }

  /** Native route table for the kernels of dispatch families. */
  get routes(): RoutesHandle {
    this.#requireOpen()
    return this.#routes
  }

  /**
   * A tensor in the payload of this rank, or of a rank of the same node.
   * @throws ERR_MOE_EP_ARGUMENT when it does not lie in the payload or the rank cannot be mapped.
   */
  tensor(place: { byteOffset: number; shape: readonly number[]; dtype: DType; rank?: number }): Tensor {
    this.#requireOpen()
    const { byteOffset, shape, dtype, rank = this.group.rank } = place
    requireInteger('rank', rank, 0, this.group.worldSize - 1)
    requireInteger('byteOffset', byteOffset, 0, this.byteLength)
    const memory = this.#segments.memories[rank]
    if (memory === undefined) throw argumentError('rank', 'a rank of the same node', rank)
    const tensor = new Tensor({ memory, dtype, shape, byteOffset: this.#segments.payloadOffset + byteOffset })
    if (byteOffset + tensor.byteLength > this.byteLength) {
      throw argumentError('shape', `a tensor inside ${this.byteLength} bytes`, `${tensor} at byte ${byteOffset}`)
    }
    return tensor
  }

  /** Enqueues a copy of `source` into the payload of `peer`. Visible there to who sees a later signal of this stream. */
  put(
    source: Tensor,
    { peer, byteOffset, stream = this.device.defaultStream }: PeerTarget & { byteOffset: number },
  ): void {
    requireTensor('source', source)
    this.#requireReachable('peer', peer)
    requireInteger('byteOffset', byteOffset, 0, this.byteLength - source.byteLength)
    native().put(stream.handle, this.routes, peer, byteOffset, source.handle)
  }

  /**
   * Enqueues several puts at once. On a cuda device one kernel brings them to all peers at the same time; where addresses or sizes are
   * no multiples of 16 bytes a copy engine does it. Targets do not overlap.
   */
  putAll(puts: readonly Put[], { stream = this.device.defaultStream, numSms = 0 }: PutAllOptions = {}): void {
    requireInteger('numSms', numSms, 0, 1024)
    for (const { source, peer, byteOffset } of puts) {
      requireTensor('source', source)
      this.#requireReachable('peer', peer)
      requireInteger('byteOffset', byteOffset, 0, this.byteLength - source.byteLength)
    }
    native().putAll(
      ...([
        stream.handle,
        this.routes,
        puts.map(({ peer }) => peer),
        puts.map(({ byteOffset }) => byteOffset),
      ] as const),
      ...([puts.map(({ source }) => source.handle), numSms] as const),
    )
  }

  /** Enqueues setting a signal of `peer` to `value`. Signals grow monotonically: waits are for "at least". */
  signal({
    peer,
    index,
    value,
    stream = this.device.defaultStream,
  }: PeerTarget & { index: number; value: number }): void {
    this.#requireReachable('peer', peer)
    this.#requireSignal(index)
    requireInteger('value', value, 0)
    native().signal(stream.handle, this.routes, peer, index, value)
  }

  /** Enqueues an atomic addition to a signal of `peer`. */
  atomicAdd({
    peer,
    index,
    delta,
    stream = this.device.defaultStream,
  }: PeerTarget & { index: number; delta: number }): void {
    this.#requireReachable('peer', peer)
    this.#requireSignal(index)
    requireInteger('delta', delta, -Number.MAX_SAFE_INTEGER)
    native().atomicAdd(stream.handle, this.routes, peer, index, delta)
  }

  /**
   * Makes later work of the stream wait until this rank's signal is at least `value`. When the deadline passes the stream's next
   * await rejects with ERR_MOE_EP_TIMEOUT, and the group's kernels on every rank of the node end with the same code.
   */
  wait(options: { index: number; value: number; timeoutMs?: number; what?: string; stream?: Stream }): void {
    const {
      index,
      value,
      timeoutMs = this.group.timeoutMs,
      what = 'wait',
      stream = this.device.defaultStream,
    } = options
    this.#requireSignal(index)
    requireInteger('value', value, 0)
    requireInteger('timeoutMs', timeoutMs, 1)
    native().wait(stream.handle, this.routes, index, value, timeoutMs, what)
  }

  /** The value that a signal of this rank (or of a rank of the same node) has now. */
  signalValue(index: number, rank = this.group.rank): bigint {
    this.#requireReachable('rank', rank)
    this.#requireSignal(index)
    return native().signalValue(this.routes, rank, index)
  }

  /** The failure that ended this memory's collectives, if any. */
  get failure(): MoeEpError | undefined {
    const poison = this.#closed ? undefined : native().poisonOf(this.#routes)
    return poison && new MoeEpError(poison.code as ErrorCode, poison.message)
  }

  /** Ends all waits on this memory, on every rank of the node, with this error. */
  poison(error: MoeEpError): void {
    native().poison(this.routes, error.code, error.message, true)
  }

  /** Unmaps everything as soon as queued work is done. Not a collective; peers keep what they have mapped. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#stopListening()
    this.#segments.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #requireReachable(argument: 'peer' | 'rank', rank: number): void {
    requireInteger(argument, rank, 0, this.group.worldSize - 1)
    if (this.routeTo(rank) === 'none') throw argumentError(argument, 'a rank of the same node', rank)
  }

  #requireSignal(index: number): void {
    requireInteger('index', index, 0, this.numSignals - 1)
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the symmetric memory was closed')
  }
}

function requireSharing(sharing: SharingChoice, device: Device): void {
  if (!['auto', 'vmm', 'ipc'].includes(sharing)) throw argumentError('sharing', '"auto", "vmm" or "ipc"', sharing)
  if (sharing !== 'auto' && device.kind !== 'cuda') throw argumentError('sharing', '"auto" on the cpu device', sharing)
}

function askDevice(group: ProcessGroup, device: Device, sizes: SegmentSizes, sharing: SharingChoice): Wish {
  try {
    return wishOf(device, sizes, sharing)
  } catch (error) {
    group.abort(MoeEpError.from(error))
    throw error
  }
}

async function allocateTogether(
  group: ProcessGroup,
  wait: SetUpWait,
  allocate: () => SharedSegments,
): Promise<SharedSegments> {
  let segments: SharedSegments | undefined
  let failure: MoeEpError | undefined
  try {
    segments = allocate()
  } catch (error) {
    failure = MoeEpError.from(error)
  }
  try {
    const report = Buffer.from(failure === undefined ? '' : `${failure.code}\n${failure.message}`)
    const reports = await group.allGather(report, wait)
    const failed = reports.findIndex((bytes) => bytes.length > 0)
    if (segments !== undefined && failed < 0) return segments
    if (failure !== undefined) throw failure
    const [code, message] = Buffer.from(reports[failed]!).toString().split('\n')
    throw new MoeEpError(code as ErrorCode, `rank ${failed}: ${message}`)
  } catch (error) {
    segments?.endSetUp()
    segments?.close()
    throw error
  }
}
