import { featureAddon, type NativeHandle, type StreamHandle, type TensorHandle } from '@moe-ep/core'
import type { RoutesHandle } from '@moe-ep/transport'

export type BufferHandle = NativeHandle<'intranodeBuffer'>
type Optional = TensorHandle | undefined

/** Typed view of this package's addon; the only file that touches it. */
interface IntranodeNative {
  /** Signals that one slot needs from every source. */
  readonly signalKinds: number
  /** Bytes that open every counts message. */
  readonly messageHeadBytes: number
  /** Bytes that describe a rank's results. */
  readonly combineHeadBytes: number
  /** Bytes that kernels of a cuda device remember of a slot. */
  readonly slotEpochsBytes: number
  /** Tokens of a run; bytes of the record of where their selections are, for each slot of a token. */
  readonly runTokens: number
  readonly placesBytes: number
  /** Signals for refused dispatches that a buffer needs from every source. */
  readonly refusalSignals: number
  /** Most bytes of a refusal's words. */
  readonly refusalWordBytes: number
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
    numRecvSelections: TensorHandle,
    slotRow: Optional,
    hostCounts: Optional,
    room: number,
    timeoutMs: number,
  ): void
  notifyCached(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    sharedArguments: readonly number[],
    rankPrefixMatrix: TensorHandle,
    tokens: number,
    timeoutMs: number,
  ): void
  send(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    experts: number,
    x: TensorHandle,
    scales: Optional,
    topkIdx: Optional,
    topkWeights: Optional,
    sendHead: TensorHandle,
    numTokensPerRank: TensorHandle,
    rankPrefixMatrix: TensorHandle,
    fillTail: boolean,
    timeoutMs: number,
    sms: number,
  ): void
  sendGrouped(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    experts: number,
    alignment: number,
    fillWithExpert: boolean,
    zeroPadding: boolean,
    x: TensorHandle,
    scales: Optional,
    topkIdx: TensorHandle,
    slotRow: TensorHandle,
    numRecvSelections: TensorHandle,
    timeoutMs: number,
    sms: number,
  ): void
  combine(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    x: TensorHandle,
    topkWeights: Optional,
    rankPrefixMatrix: TensorHandle,
    sendHead: TensorHandle,
    bias0: Optional,
    bias1: Optional,
    out: TensorHandle,
    outTopkWeights: Optional,
    timeoutMs: number,
    sms: number,
  ): void
  combineGrouped(
    stream: StreamHandle,
    buffer: BufferHandle,
    slot: number,
    experts: number,
    x: TensorHandle,
    topkIdx: TensorHandle,
    topkWeights: TensorHandle,
    slotRow: TensorHandle,
    numRecvTokensPerExpert: TensorHandle,
    out: TensorHandle,
    timeoutMs: number,
    sms: number,
  ): void
  refuseDispatch(
    stream: StreamHandle,
    buffer: BufferHandle,
    call: number,
    code: string,
    words: string,
    timeoutMs: number,
  ): void
  refuseCombine(stream: StreamHandle, buffer: BufferHandle, slot: number, code: string, words: string): void
  copyRows(stream: StreamHandle, from: TensorHandle, to: TensorHandle): void
}

export const native = featureAddon<IntranodeNative>({
  packageName: '@moe-ep/intranode-ht',
  addonName: 'moe_ep_intranode_ht',
  moduleUrl: import.meta.url,
})
