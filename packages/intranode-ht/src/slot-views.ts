import { argumentError, type DType, type Event, Tensor } from '@moe-ep/core'
import type { Lease, SymmetricMemory } from '@moe-ep/transport'
import type { BufferLayout } from './buffer-layout.js'
import type { DispatchPlan } from './dispatch-handle.js'
import type {
  DispatchOptions,
  DispatchResult,
  GroupedDispatchOptions,
  GroupedDispatchResult,
} from './dispatch-types.js'

/** Regions of a slot that tensors are views of. */
type SlotRegion = 'rows' | 'scales' | 'topkIdx' | 'topkWeights' | 'sourceIndex' | 'columnScales'

/** Where a result lies and when it is complete. */
export interface Filled {
  readonly x: Tensor
  readonly lease: Lease
  readonly plan: DispatchPlan
  readonly event: Event
}

/** Tensors over the slots of a buffer's symmetric memory. */
export class SlotViews {
  readonly #memory: SymmetricMemory
  readonly #layout: BufferLayout

  constructor(memory: SymmetricMemory, layout: BufferLayout) {
    this.#memory = memory
    this.#layout = layout
  }

  /** @throws ERR_MOE_EP_ARGUMENT when the region is too small. */
  tensor(slot: number, region: SlotRegion, shape: readonly number[], dtype: DType): Tensor {
    const { byteOffset, byteLength } = this.#layout[region]
    const tensor = this.#memory.tensor({ byteOffset: slot * this.#layout.slotBytes + byteOffset, shape, dtype })
    if (tensor.byteLength > byteLength) throw argumentError('shape', `at most ${byteLength} bytes`, tensor.toString())
    return tensor
  }

  /** Whether results that lie in `x` must be copied into the slot, because they do not lie there already. */
  isStaged(x: Tensor, slot: number): boolean {
    return x.pointer !== this.tensor(slot, 'rows', [0], 'u8').pointer
  }

  /** What a plain dispatch gives, of as many rows as the plan says. */
  dispatchResult({ x, lease, plan, event }: Filled, options: DispatchOptions): DispatchResult {
    const hidden = x.shape[1]!
    const rows = plan.numRecvTokens
    const view = (region: SlotRegion, columns: number, dtype: DType): Tensor =>
      this.tensor(lease.slot, region, [rows, columns], dtype)
    const { topkIdx, topkWeights, scales } = options
    const recvSrcIdx = this.tensor(lease.slot, 'sourceIndex', [rows], 'i32')
    return {
      recvX: view('rows', hidden, x.dtype),
      recvXScales: scales && view('scales', scales.shape[1]!, 'f32'),
      recvTopkIdx: topkIdx && view('topkIdx', topkIdx.shape[1]!, topkIdx.dtype),
      recvTopkWeights: topkWeights && view('topkWeights', topkWeights.shape[1]!, 'f32'),
      numRecvTokensPerExpert: Int32Array.from(plan.hostCounts?.numRecvTokensPerExpert ?? []),
      handle: { plan, lease, hidden, dtype: x.dtype, recvSrcIdx },
      event,
    }
  }

  /** What a grouped dispatch gives. */
  groupedResult({ x, lease, plan, event }: Filled, options: GroupedDispatchOptions): GroupedDispatchResult {
    const { topkIdx, topkWeights, scales } = options
    const rows = plan.numRecvTokens
    const hidden = x.shape[1]!
    return {
      recvX: this.tensor(lease.slot, 'rows', [rows, hidden], x.dtype),
      recvXScales: scales && this.#columnScales(lease.slot, rows, scales.shape[1]!),
      expertIds: this.tensor(lease.slot, 'sourceIndex', [rows], 'i32'),
      numRecvTokensPerExpert: Int32Array.from(plan.hostCounts?.numRecvTokensPerExpert ?? []),
      handle: { plan, lease, hidden, dtype: x.dtype, topkIdx, topkWeights },
      event,
    }
  }

  #columnScales(slot: number, rows: number, columns: number): Tensor {
    const stride = Math.ceil(rows / 4) * 4
    const { memory, byteOffset } = this.tensor(slot, 'columnScales', [columns, stride], 'f32')
    return new Tensor({ memory, dtype: 'f32', shape: [rows, columns], strides: [1, stride], byteOffset })
  }
}
