import type { Device, Stream, Tensor } from '@moe-ep/core'
import {
  type CallOptions,
  type CombineResult,
  type DispatchHandle,
  type DispatchOptions,
  type DispatchResult,
  IntranodeBuffer,
  type IntranodeBufferOptions,
  type IntranodeBufferSizes,
} from '@moe-ep/intranode-ht'
import { type DispatchLayout, getDispatchLayout } from '@moe-ep/layout'
import type { ProcessGroup } from '@moe-ep/transport'

/**
 * One object for all communication of a MoE layer, in the manner of DeepEP's Buffer: it owns the symmetric memory of the dispatch
 * families and picks the family that the group's topology asks for. All ranks make it and call it alike.
 *
 * Groups of one node use `@moe-ep/intranode-ht`; its documentation holds the exact contract of every tensor.
 */
export class Buffer implements Disposable {
  readonly #intranode: IntranodeBuffer

  private constructor(intranode: IntranodeBuffer) {
    this.#intranode = intranode
  }

  /**
   * Builds the buffer on all ranks; collective.
   * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_UNSUPPORTED for a group of several nodes; ERR_MOE_EP_MISMATCH for sizes that differ
   *   between ranks; ERR_MOE_EP_OUT_OF_MEMORY with the bytes; what the group fails with.
   */
  static async create(group: ProcessGroup, options: IntranodeBufferOptions): Promise<Buffer> {
    return new Buffer(await IntranodeBuffer.create(group, options))
  }

  /** Bytes of symmetric memory that a buffer of these sizes takes on every rank. */
  static sizeHint(sizes: IntranodeBufferSizes, numRanks: number): number {
    return IntranodeBuffer.sizeHint(sizes, numRanks)
  }

  get group(): ProcessGroup {
    return this.#intranode.group
  }

  get rank(): number {
    return this.group.rank
  }

  get groupSize(): number {
    return this.group.worldSize
  }

  get device(): Device {
    return this.#intranode.device
  }

  /** Where this rank's tokens go, without sending anything: see `getDispatchLayout` of `@moe-ep/layout`. */
  getDispatchLayout(topkIdx: Tensor, numExperts: number, options: { readonly stream?: Stream } = {}): DispatchLayout {
    return getDispatchLayout(topkIdx, { numExperts, numRanks: this.groupSize, ...options })
  }

  /** Sends each row to the ranks of its experts: see `IntranodeBuffer.dispatch`. */
  dispatch(x: Tensor, options: DispatchOptions): Promise<DispatchResult> {
    return this.#intranode.dispatch(x, options)
  }

  /** Brings rows home and sums them: see `IntranodeBuffer.combine`. */
  combine(x: Tensor, handle: DispatchHandle, options: CallOptions & { readonly out?: Tensor } = {}): CombineResult {
    return this.#intranode.combine(x, handle, options)
  }

  /** Frees the memory as soon as queued work is done. */
  close(): void {
    this.#intranode.close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
