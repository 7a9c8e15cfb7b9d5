import { featureAddon, type NativeHandle, type StreamHandle, type TensorHandle } from '@moe-ep/core'
import type { RoutesHandle } from '@moe-ep/transport'

export type BufferHandle = NativeHandle<'lowLatencyBuffer'>
type Optional = TensorHandle | undefined

/** Phases of a call, as bits. */
export const phase = { send: 1, receive: 2, both: 3 } as const
export type Phases = (typeof phase)[keyof typeof phase]

/** Typed view of this package's addon; the only file that touches it. */
interface LowLatencyNative {
  /** Signals that one slot needs from every source. */
  readonly signalKinds: number
  /** Bytes in which a source tells of its messages. */
  readonly headBytes: number
  /** Bytes that kernels of a cuda device remember of a slot. */
  readonly stateBytes: number
  /** What a failure calls masks that differ. */
  readonly maskArgument: string
  /** Bytes of a row in any format. */
  messageBytes(hidden: number): number
  /** Slots of a row of the tables of ids. */
  paddedTopk(topk: number): number
  createBuffer(routes: RoutesHandle, layout: readonly number[], masksLate: boolean): BufferHandle
  closeBuffer(buffer: BufferHandle): void
  dispatch(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    phases: Phases,
    sharedArguments: readonly number[],
    timeoutMs: number,
    numSms: number,
    x: TensorHandle,
    topkIdx: TensorHandle,
    topkWeights: Optional,
    xGlobalScale: Optional,
    packedRecvX: TensorHandle,
    packedRecvXScales: Optional,
    packedRecvCount: TensorHandle,
    srcInfo: TensorHandle,
    layoutRange: Optional,
    rows: TensorHandle,
    messages: TensorHandle,
    first: TensorHandle,
    recvTopkIdx: Optional,
    recvTopkWeights: Optional,
    recvStats: Optional,
    waitStats: Optional,
  ): void
  /** `code`: an error's, as ranks hear it. */
  refuseDispatch(stream: StreamHandle, buffer: BufferHandle, slot: number, code: string, timeoutMs: number): void
  combine(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    phases: Phases,
    weighted: boolean,
    rankMajor: boolean,
    logfmt: boolean,
    experts: number,
    timeoutMs: number,
    numSms: number,
    x: TensorHandle,
    rows: TensorHandle,
    messages: TensorHandle,
    first: TensorHandle,
    topkIdx: TensorHandle,
    topkWeights: Optional,
    out: TensorHandle,
    waitStats: Optional,
  ): void
  /** `code`: an error's, as ranks hear it. */
  refuseCombine(stream: StreamHandle, buffer: BufferHandle, slot: number, code: string): void
  /** Of one rank, or of all for -1. */
  updateMask(stream: StreamHandle, buffer: BufferHandle, rank: number, masks: boolean): void
  queryMask(stream: StreamHandle, buffer: BufferHandle, out: TensorHandle): void
}

export const native = featureAddon<LowLatencyNative>({
  packageName: '@moe-ep/low-latency',
  addonName: 'moe_ep_low_latency',
  moduleUrl: import.meta.url,
})
