import { MoeEpError } from './error.js'
import { loadAddon } from './load-addon.js'
import { wrapFunctions } from './wrap-functions.js'

declare const handleKind: unique symbol
/** Opaque native handle; only addons can read it. */
export interface NativeHandle<Kind extends string = string> {
  readonly [handleKind]: Kind
}
export type MemoryHandle = NativeHandle<'memory'>
export type TensorHandle = NativeHandle<'tensor'>
export type StreamHandle = NativeHandle<'stream'>
export type EventHandle = NativeHandle<'event'>
export type GraphHandle = NativeHandle<'graph'>
export type PlanHandle = NativeHandle<'plan'>

/** What the driver says of one GPU. */
export interface NativeCudaDevice {
  readonly gpu: string
  readonly uuid: string
  readonly memoryBytes: number
  readonly multiprocessors: number
  readonly computeCapability: number
  /** Why this build cannot use it. */
  readonly reason?: string
}

/** Typed view of core's addon; the only file that touches it. */
interface CoreNative {
  readonly abiVersion: number
  readonly coreApi: NativeHandle<'coreApi'>
  allocate(byteLength: number): MemoryHandle
  wrapBuffer(buffer: ArrayBufferLike, byteOffset: number, byteLength: number): MemoryHandle
  wrapPointer(device: number, address: bigint, byteLength: number): MemoryHandle
  memoryPointer(memory: MemoryHandle): bigint
  memoryByteLength(memory: MemoryHandle): number
  memoryView(memory: MemoryHandle, byteOffset: number, byteLength: number): ArrayBuffer
  memoryClose(memory: MemoryHandle, views: readonly ArrayBuffer[]): void
  createTensor(
    memory: MemoryHandle,
    byteOffset: number,
    dtype: number,
    shape: readonly number[],
    strides: readonly number[],
  ): TensorHandle
  createStream(threads: number): StreamHandle
  streamCapturing(stream: StreamHandle): boolean
  streamRecording(stream: StreamHandle): boolean
  streamSynchronize(stream: StreamHandle): Promise<void>
  streamClose(stream: StreamHandle, abort: boolean): void
  streamDelay(stream: StreamHandle, microseconds: number): void
  streamFail(stream: StreamHandle, code: string, message: string): void
  streamRecord(stream: StreamHandle, event: EventHandle, timed: boolean): void
  streamWait(stream: StreamHandle, event: EventHandle, takeFailure: boolean): void
  createEvent(): EventHandle
  eventSynchronize(event: EventHandle): Promise<void>
  eventQuery(event: EventHandle): boolean
  eventTime(event: EventHandle): number
  beginCapture(stream: StreamHandle): void
  endCapture(stream: StreamHandle): GraphHandle
  graphSize(graph: GraphHandle): number
  graphOperations(graph: GraphHandle): number
  graphLaunch(graph: GraphHandle, stream: StreamHandle): void
  graphClose(graph: GraphHandle): void
  beginPlan(stream: StreamHandle): void
  endPlan(stream: StreamHandle): PlanHandle
  planSize(plan: PlanHandle): number
  planLaunch(plan: PlanHandle, stream: StreamHandle): void
  planLaunchTimes(plan: PlanHandle, stream: StreamHandle, count: number): number
  planClose(plan: PlanHandle): void
  copy(stream: StreamHandle, from: TensorHandle, to: TensorHandle): void
  cudaDevices(): { readonly devices: readonly NativeCudaDevice[]; readonly reason: string }
  // The rest is there in builds with CUDA only, and called only for cuda devices and what they made.
  cudaAllocate(ordinal: number, byteLength: number, stream: StreamHandle | undefined, zeroed: boolean): MemoryHandle
  cudaAllocatePinned(ordinal: number, byteLength: number): MemoryHandle
  cudaUpload(memory: MemoryHandle, byteOffset: number, bytes: ArrayBufferView): void
  cudaCreateStream(ordinal: number): StreamHandle
  cudaWrapStream(ordinal: number, handle: bigint): StreamHandle
  cudaStreamHandle(stream: StreamHandle): bigint
  cudaMemoryUse(ordinal: number): { readonly reservedBytes: number; readonly usedBytes: number }
  cudaFreeBytes(ordinal: number): number
  cudaCanExport(ordinal: number): boolean
  cudaAllocateExportable(ordinal: number, byteLength: number): MemoryHandle
  cudaExportMemory(memory: MemoryHandle): number
  cudaImportMemory(ordinal: number, descriptor: number, byteLength: number): MemoryHandle
  cudaAllocateIpc(ordinal: number, byteLength: number, count: MemoryHandle, countOffset: number): MemoryHandle
  cudaIpcHandle(memory: MemoryHandle): Uint8Array
  cudaOpenIpc(
    ordinal: number,
    handle: Uint8Array,
    byteLength: number,
    count: MemoryHandle,
    countOffset: number,
  ): MemoryHandle
  cudaCanAccessPeer(ordinal: number, peer: number): boolean
  cudaEnablePeerAccess(ordinal: number, peer: number): void
}

let loaded: CoreNative | undefined

/**
 * Core's addon, loaded at first use.
 * @throws ERR_MOE_EP_NATIVE_LOAD when there is none for this platform; ERR_MOE_EP_DUPLICATE_CORE when another copy came first.
 */
export function native(): CoreNative {
  if (loaded === undefined) {
    const location = { packageName: '@moe-ep/core', addonName: 'moe_ep_core', moduleUrl: import.meta.url }
    const { addon, path } = loadAddon<CoreNative>(location)
    claimProcess(path)
    loaded = wrapFunctions(addon)
  }
  return loaded
}

/** Native state lives once in a process: a second copy would have streams that the first cannot order. */
function claimProcess(path: string): void {
  const key = Symbol.for('moe-ep.core.addon')
  const registry = globalThis as { [key]?: string }
  const first = (registry[key] ??= path)
  if (first === path) return
  throw new MoeEpError(
    'ERR_MOE_EP_DUPLICATE_CORE',
    `two copies of @moe-ep/core are in this process: ${first} and ${path}. ` +
      'Depend on one version of it (it is a peer dependency of the other packages; `npm ls @moe-ep/core` shows who brings which)',
  )
}
