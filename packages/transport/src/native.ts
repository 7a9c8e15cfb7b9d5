import { featureAddon, type MemoryHandle, type NativeHandle, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** Native table of how each rank is reached; dispatch families pass it to their kernels. */
export type RoutesHandle = NativeHandle<'routes'>

/** A control block in memory of the host that kernels see, too. */
export interface NativeCudaControl {
  readonly memory: MemoryHandle
  readonly descriptor: number
  readonly byteLength: number
  /** Where the block counts the mappings of ipc memory. */
  readonly mappingsOffset: number
  /** Address of the state of its poison record, for kernels. */
  readonly hostPoison: bigint
  /** What kernels report in place of its text. */
  readonly poisonId: number
}

/** Typed view of this package's addon; the only file that touches it. */
interface TransportNative {
  createSegment(
    payloadBytes: number,
    numSignals: number,
  ): { memory: MemoryHandle; descriptor: number; payloadOffset: number; byteLength: number }
  mapSegment(descriptor: number, byteLength: number): MemoryHandle
  segmentLayout(payloadBytes: number, numSignals: number): { payloadOffset: number; byteLength: number }
  createCudaControl(ordinal: number, payloadBytes: number, numSignals: number): NativeCudaControl
  closeDescriptor(descriptor: number): void
  openDescriptorSocket(name: string): number
  sendDescriptor(socket: number, peerName: string, descriptor: number, payload: Uint8Array): boolean
  receiveDescriptor(socket: number): { descriptor: number; payload: Uint8Array } | undefined
  createRoutes(
    rank: number,
    memories: readonly (MemoryHandle | undefined)[],
    numSignals: number,
    payloadBytes: number,
    spinIterations: number,
  ): RoutesHandle
  createCudaRoutes(
    ordinal: number,
    rank: number,
    memories: readonly (MemoryHandle | undefined)[],
    controls: readonly (MemoryHandle | undefined)[],
    bases: MemoryHandle,
    numSignals: number,
    payloadBytes: number,
    hostPoison: bigint,
    poisonId: number,
  ): RoutesHandle
  poison(routes: RoutesHandle, code: string, message: string, everybody: boolean): void
  poisonOf(routes: RoutesHandle): { code: string; message: string } | undefined
  put(stream: StreamHandle, routes: RoutesHandle, peer: number, byteOffset: number, source: TensorHandle): void
  putAll(
    stream: StreamHandle,
    routes: RoutesHandle,
    peers: readonly number[],
    byteOffsets: readonly number[],
    sources: readonly TensorHandle[],
    sms: number,
  ): void
  signal(stream: StreamHandle, routes: RoutesHandle, peer: number, index: number, value: number): void
  atomicAdd(stream: StreamHandle, routes: RoutesHandle, peer: number, index: number, delta: number): void
  wait(stream: StreamHandle, routes: RoutesHandle, index: number, value: number, timeoutMs: number, what: string): void
  signalValue(routes: RoutesHandle, peer: number, index: number): bigint
}

export const native = featureAddon<TransportNative>({
  packageName: '@moe-ep/transport',
  addonName: 'moe_ep_transport',
  moduleUrl: import.meta.url,
})
