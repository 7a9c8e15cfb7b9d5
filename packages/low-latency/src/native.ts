import { featureAddon, type NativeHandle, type StreamHandle, type TensorHandle } from '@moe-ep/core'
import type { RoutesHandle } from '@moe-ep/transport'

export type BufferHandle = NativeHandle<'lowLatencyBuffer'>
type Optional = TensorHandle | undefined

/** Typed view of this package's addon; the only file that touches it. */
interface LowLatencyNative {
  /** Signals that one slot needs from every source. */
  readonly signalKinds: number
  /** Bytes in which a source tells of its messages. */
  readonly headBytes: number
  /** Bytes that kernels of a cuda device remember of a slot. */
  readonly stateBytes: number
  /** Bytes of a message that carries a row in any format. */
  messageBytes(hidden: number, topk: number): number
  /** Bytes that open a message. */
  headerBytes(topk: number): number
  createBuffer(routes: RoutesHandle, layout: readonly number[]): BufferHandle
  closeBuffer(buffer: BufferHandle): void
  dispatchSend(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    sharedArguments: readonly number[],
    x: TensorHandle,
    topkIdx: TensorHandle,
    topkWeights: Optional,
    timeoutMs: number,
  ): void
  dispatchReceive(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    sharedArguments: readonly number[],
    packedRecvX: TensorHandle,
    packedRecvXScales: Optional,
    packedRecvCount: TensorHandle,
    srcInfo: TensorHandle,
    layoutRange: Optional,
    origins: TensorHandle,
    numMessages: TensorHandle,
    recvTopkIdx: Optional,
    recvTopkWeights: Optional,
    recvStats: Optional,
    waitStats: Optional,
    timeoutMs: number,
  ): void
  combineSend(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    weighted: boolean,
    rankMajor: boolean,
    x: TensorHandle,
    origins: TensorHandle,
    numMessages: TensorHandle,
  ): void
  combineReceive(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    weighted: boolean,
    experts: number,
    topkIdx: TensorHandle,
    topkWeights: Optional,
    out: TensorHandle,
    waitStats: Optional,
    timeoutMs: number,
  ): void
}

export const native = featureAddon<LowLatencyNative>({
  packageName: '@moe-ep/low-latency',
  addonName: 'moe_ep_low_latency',
  moduleUrl: import.meta.url,
})
