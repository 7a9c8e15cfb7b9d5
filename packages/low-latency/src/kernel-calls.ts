import { type Event, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import type { PackedRows, RowSources } from './call-types.js'
import { type BufferHandle, native, phase, type Phases } from './native.js'
import type { ReceivedMessages } from './pending-dispatch.js'

/** Where and for how long a kernel runs. */
export interface KernelCall {
  readonly buffer: BufferHandle
  readonly slot: number
  readonly stream: Stream
  readonly timeoutMs: number
  readonly numSms: number
}

type Optional = Tensor | undefined

/** What a dispatch reads and writes. */
export interface DispatchTensors extends PackedRows, RowSources {
  readonly x: Tensor
  readonly topkIdx: Tensor
  readonly topkWeights: Optional
  readonly xGlobalScale: Optional
  readonly received: ReceivedMessages
  readonly recvStats: Optional
  readonly waitStats: Optional
}

/** What a combine reads and writes, and how. */
export interface CombineCall {
  readonly x: Tensor
  readonly topkIdx: Tensor
  readonly topkWeights: Optional
  readonly combinedX: Tensor
  readonly received: ReceivedMessages
  readonly waitStats: Optional
  /** One row of each rank comes home, with weights applied. */
  readonly weighted: boolean
  readonly rankMajor: boolean
  readonly useLogfmt: boolean
  readonly numExperts: number
}

const suffixes = { [phase.both]: '', [phase.send]: 'Send', [phase.receive]: 'Receive' } as const

/** A dispatch, or a phase of it; `shared` are the arguments that all ranks must agree on. Gives its end. */
export function enqueueDispatch(
  { buffer, slot, stream, timeoutMs, numSms, shared }: KernelCall & { readonly shared: readonly number[] },
  phases: Phases,
  tensors: DispatchTensors,
): Event {
  const { x, topkIdx, topkWeights, xGlobalScale, packedRecvX, packedRecvXScales, packedRecvCount } = tensors
  const { srcInfo, layoutRange, received, recvTopkIdx, recvTopkWeights, recvStats, waitStats } = tensors
  // Rows are counted where they are read.
  const bytes = phases === phase.receive ? undefined : x.byteLength
  traceOperation(`low-latency.dispatch${suffixes[phases]}`, stream, bytes, () =>
    native().dispatch(
      ...([stream.handle, buffer, slot, phases, shared, timeoutMs, numSms] as const),
      ...([x.handle, topkIdx.handle, topkWeights?.handle, xGlobalScale?.handle] as const),
      ...([packedRecvX.handle, packedRecvXScales?.handle, packedRecvCount.handle, srcInfo.handle] as const),
      ...([layoutRange?.handle, received.rows.handle, received.messages.handle, received.first.handle] as const),
      ...([recvTopkIdx?.handle, recvTopkWeights?.handle, recvStats?.handle, waitStats?.handle] as const),
    ),
  )
  return stream.mark()
}

/** A combine, or a phase of it. Gives its end. */
export function enqueueCombine(
  { buffer, slot, stream, timeoutMs, numSms }: KernelCall,
  phases: Phases,
  call: CombineCall,
): Event {
  const { x, topkIdx, topkWeights, combinedX, received, waitStats } = call
  const { weighted, rankMajor, useLogfmt, numExperts } = call
  traceOperation(`low-latency.combine${suffixes[phases]}`, stream, combinedX.byteLength, () =>
    native().combine(
      ...([stream.handle, buffer, slot, phases, weighted, rankMajor, useLogfmt] as const),
      ...([numExperts, timeoutMs, numSms, x.handle] as const),
      ...([received.rows.handle, received.messages.handle, received.first.handle] as const),
      ...([topkIdx.handle, topkWeights?.handle, combinedX.handle, waitStats?.handle] as const),
    ),
  )
  return stream.mark()
}
