import { featureAddon, type NativeHandle, type StreamHandle, type TensorHandle } from '@moe-ep/core'
import type { RoutesHandle } from '@moe-ep/transport'

export type BufferHandle = NativeHandle<'intranodeBuffer'>

/** Typed view of this package's addon; the only file that touches it. */
interface IntranodeNative {
  /** Signals that one slot needs from every source. */
  readonly signalKinds: number
  /** Bytes of the arguments that open every counts message. */
  readonly sharedArgumentBytes: number
  /** Bytes of what ranks must agree on in a combine. */
  readonly combineArgumentBytes: number
  createBuffer(routes: RoutesHandle, layout: readonly number[]): BufferHandle
  closeBuffer(buffer: BufferHandle): void
  notify(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    sharedArguments: readonly number[],
    topkIdx: TensorHandle,
    numTokensPerRank: TensorHandle,
    numTokensPerExpert: TensorHandle,
    isTokenInRank: TensorHandle,
    rankPrefixMatrix: TensorHandle,
    channelPrefixMatrix: TensorHandle,
    recvChannelPrefixMatrix: TensorHandle,
    sendHead: TensorHandle,
    numRecvTokensPerExpert: TensorHandle,
    timeoutMs: number,
  ): void
  notifyCached(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    sharedArguments: readonly number[],
    rankPrefixMatrix: TensorHandle,
    timeoutMs: number,
  ): void
  send(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    experts: number,
    x: TensorHandle,
    scales: TensorHandle | undefined,
    topkIdx: TensorHandle | undefined,
    topkWeights: TensorHandle | undefined,
    sendHead: TensorHandle,
    timeoutMs: number,
  ): void
  combine(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    x: TensorHandle,
    numTokensPerRank: TensorHandle,
    sendHead: TensorHandle,
    out: TensorHandle,
    timeoutMs: number,
  ): void
}

export const native = featureAddon<IntranodeNative>({
  packageName: '@moe-ep/intranode-ht',
  addonName: 'moe_ep_intranode_ht',
  moduleUrl: import.meta.url,
})
