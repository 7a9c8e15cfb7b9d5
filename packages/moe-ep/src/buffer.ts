import { type Device, MoeEpError, type Stream, type Tensor } from '@moe-ep/core'
import {
  type CombineOptions,
  type CombineResult,
  type DispatchHandle,
  type DispatchOptions,
  type DispatchResult,
  IntranodeBuffer,
  type IntranodeBufferOptions,
  type IntranodeBufferSizes,
} from '@moe-ep/intranode-ht'
import { type DispatchLayout, getDispatchLayout } from '@moe-ep/layout'
import {
  LowLatencyBuffer,
  type LowLatencyBufferOptions,
  type LowLatencyBufferSizes,
  type LowLatencyCombineOptions,
  type LowLatencyCombineResult,
  type LowLatencyDispatchOptions,
  type LowLatencyDispatchResult,
  type LowLatencyHandle,
} from '@moe-ep/low-latency'
import { type ProcessGroup, requireSameLayout } from '@moe-ep/transport'
import { version } from './version.js'

/** Sizes of all families that a buffer has. */
export interface BufferSizes extends IntranodeBufferSizes {
  /** Of the low-latency family, for batches of decode size; the same on all ranks. @default none: there is no such family then */
  readonly lowLatency?: LowLatencyBufferSizes
}

/** How a buffer is made: sizes, and what all families have in common. */
export interface BufferOptions extends BufferSizes, Pick<IntranodeBufferOptions, 'device' | 'timeoutMs' | 'signal'> {
  readonly lowLatency?: LowLatencyBufferSizes & Pick<LowLatencyBufferOptions, 'numSms'>
}

/**
 * One object for all communication of a MoE layer, in the manner of DeepEP's Buffer: it owns the symmetric memory of the dispatch
 * families and picks the family that the group's topology asks for. All ranks make it and call it alike.
 *
 * Groups of one node use `@moe-ep/intranode-ht` and, for the calls of low latency, `@moe-ep/low-latency`; their documentation holds the
 * exact contract of every tensor. What is not here is in {@link intranode} and {@link lowLatency}.
 */
export class Buffer implements Disposable {
  /** The high-throughput family: grouped rows, plans, worst-case sizes, refusals. */
  readonly intranode: IntranodeBuffer
  readonly #lowLatency: LowLatencyBuffer | undefined

  private constructor(intranode: IntranodeBuffer, lowLatency: LowLatencyBuffer | undefined) {
    this.intranode = intranode
    this.#lowLatency = lowLatency
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED for a group of several nodes; ERR_MOE_EP_MISMATCH for sizes, or
   *   versions of a package, that differ between ranks; ERR_MOE_EP_OUT_OF_MEMORY with the bytes; what the group fails with.
   */
  static async create(group: ProcessGroup, { lowLatency, ...options }: BufferOptions): Promise<Buffer> {
    const { device, timeoutMs, signal } = options
    // What one rank can see by itself comes before anything that all do together.
    Buffer.sizeHint({ ...options, ...(lowLatency && { lowLatency }) }, group.worldSize)
    const families = [lowLatency === undefined ? 0 : 1]
    const wait = { timeoutMs: timeoutMs ?? group.timeoutMs, signal }
    await requireSameLayout(group, families, { ...wait, version, label: 'buffer' })
    const intranode = await IntranodeBuffer.create(group, options)
    if (lowLatency === undefined) return new Buffer(intranode, undefined)
    try {
      const common = {
        ...(device && { device }),
        ...(timeoutMs !== undefined && { timeoutMs }),
        ...(signal && { signal }),
      }
      return new Buffer(intranode, await LowLatencyBuffer.create(group, { ...lowLatency, ...common }))
    } catch (error) {
      intranode.close()
      throw error
    }
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank. */
  static sizeHint({ lowLatency, ...sizes }: BufferSizes, numRanks: number): number {
    const own = lowLatency === undefined ? 0 : LowLatencyBuffer.sizeHint(lowLatency, numRanks)
    return IntranodeBuffer.sizeHint(sizes, numRanks) + own
  }

  /**
   * The low-latency family: masks, refusals, release.
   * @throws ERR_MOE_EP_UNSUPPORTED for a buffer that was made without its sizes.
   */
  get lowLatency(): LowLatencyBuffer {
    if (this.#lowLatency !== undefined) return this.#lowLatency
    throw new MoeEpError(
      'ERR_MOE_EP_UNSUPPORTED',
      "the buffer was made without sizes for low latency: see 'lowLatency'",
    )
  }

  get group(): ProcessGroup {
    return this.intranode.group
  }

  get rank(): number {
    return this.group.rank
  }

  get groupSize(): number {
    return this.group.worldSize
  }

  get device(): Device {
    return this.intranode.device
  }

  /** Where this rank's tokens go, without sending anything: see `getDispatchLayout` of `@moe-ep/layout`. */
  getDispatchLayout(topkIdx: Tensor, numExperts: number, options: { readonly stream?: Stream } = {}): DispatchLayout {
    return getDispatchLayout(topkIdx, { numExperts, numRanks: this.groupSize, ...options })
  }

  /** Sends each row to the ranks of its experts: see `IntranodeBuffer.dispatch`. */
  dispatch(x: Tensor, options: DispatchOptions): Promise<DispatchResult> {
    return this.intranode.dispatch(x, options)
  }

  /** Brings rows home and sums them: see `IntranodeBuffer.combine`. */
  combine(x: Tensor, handle: DispatchHandle, options: CombineOptions = {}): CombineResult {
    return this.intranode.combine(x, handle, options)
  }

  /** The same for few tokens, rows packed by expert: see `LowLatencyBuffer.lowLatencyDispatch`. @throws as {@link lowLatency}. */
  lowLatencyDispatch(x: Tensor, topkIdx: Tensor, options: LowLatencyDispatchOptions): LowLatencyDispatchResult {
    return this.lowLatency.lowLatencyDispatch(x, topkIdx, options)
  }

  /** Brings them home: see `LowLatencyBuffer.lowLatencyCombine`. @throws as {@link lowLatency}. */
  lowLatencyCombine(
    x: Tensor,
    topkIdx: Tensor,
    topkWeights: Tensor | undefined,
    handle: LowLatencyHandle,
    options: LowLatencyCombineOptions = {},
  ): LowLatencyCombineResult {
    return this.lowLatency.lowLatencyCombine(x, topkIdx, topkWeights, handle, options)
  }

  /** Memory for the experts' results: see `LowLatencyBuffer.getNextLowLatencyCombineBuffer`. @throws as {@link lowLatency}. */
  getNextLowLatencyCombineBuffer(handle: LowLatencyHandle): Tensor {
    return this.lowLatency.getNextLowLatencyCombineBuffer(handle)
  }

  /** Does nothing, for nothing needs it. @throws as {@link lowLatency}. */
  cleanLowLatencyBuffer(): void {
    this.lowLatency.cleanLowLatencyBuffer()
  }

  /** Frees the memory as soon as queued work is done. */
  close(): void {
    this.#lowLatency?.close()
    this.intranode.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
