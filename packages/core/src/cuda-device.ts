import { requireByteLength, requireCpu, requireCuda } from './device-checks.js'
import { type AllocateOptions, Device } from './device.js'
import { argumentError } from './error.js'
import { Memory } from './memory.js'
import { native, type NativeCudaDevice } from './native.js'
import { Stream } from './stream.js'

/**
 * How many mappings there are of memory of {@link CudaDevice.allocateIpc}: a 32-bit word, 0 at first, in memory of the host that its owner
 * and all who map it share.
 */
export interface MappingCount {
  readonly memory: Memory
  readonly byteOffset: number
}

/** A GPU. Its memory comes from an arena that grows in large steps and is given back to it, not to the driver. */
export class CudaDevice extends Device {
  readonly name: string
  readonly kind = 'cuda'
  readonly ordinal: number
  /** Such as `NVIDIA H200`. */
  readonly gpu: string
  /** Names the GPU on every machine and in every process, as `nvidia-smi -L` shows it. */
  readonly uuid: string
  readonly memoryBytes: number
  readonly multiprocessors: number

  /** @internal Use `getDevice`. */
  constructor(ordinal: number, facts: NativeCudaDevice) {
    super()
    this.name = `cuda:${ordinal}`
    this.ordinal = ordinal
    this.gpu = facts.gpu
    this.uuid = facts.uuid
    this.memoryBytes = facts.memoryBytes
    this.multiprocessors = facts.multiprocessors
  }

  /** A new CUDA stream, which does not wait for the default stream. The number of threads means nothing here. */
  createStream(): Stream {
    return new Stream(this, 1, native().cudaCreateStream(this.ordinal))
  }

  /**
   * A stream over a `cudaStream_t` that somebody else made and keeps until this one was closed and awaited; 0n is CUDA's default
   * stream, 2n (a stream of each thread, which others cannot wait for) is refused.
   *
   * Its owner may capture it: then operations become part of the owner's graph, which keeps what they use (tensors, memory of the
   * library) until it and all that was made of it are destroyed. An event that is recorded there stands for the newest launch, and
   * until the first for the capture itself. A launch that fails fails the wrapped stream: await that to hear of it, for until then
   * launches do nothing, and for ever where it was closed. Awaiting the stream, closing it and launching graphs on it during a
   * capture is ERR_MOE_EP_CAPTURE.
   */
  wrapStream(handle: bigint): Stream {
    if (typeof handle !== 'bigint' || handle < 0n || handle === 2n)
      throw argumentError('handle', 'a cudaStream_t of all threads as a bigint', handle)
    return new Stream(this, 1, native().cudaWrapStream(this.ordinal, handle))
  }

  override allocate(byteLength: number, options: AllocateOptions = {}): Memory {
    const { zeroed = true, stream } = options
    requireByteLength(byteLength)
    if (stream !== undefined && stream.device.name !== this.name)
      throw argumentError('stream', `a stream of ${this}`, stream)
    return new Memory(this, native().cudaAllocate(this.ordinal, byteLength, stream?.handle, zeroed))
  }

  /**
   * Zeroed memory of the host that the device reads and writes directly: a tensor in it is a cpu tensor, and copies to and from it
   * are the fastest.
   * @param host the cpu device.
   * @throws ERR_MOE_EP_OUT_OF_MEMORY; ERR_MOE_EP_ARGUMENT for another device.
   */
  allocatePinned(host: Device, byteLength: number): Memory {
    requireCpu(host)
    return new Memory(host, native().cudaAllocatePinned(this.ordinal, requireByteLength(byteLength)))
  }

  /** Bytes that the arena took from the driver, and those of them that are in use. */
  get memoryUse(): { readonly reservedBytes: number; readonly usedBytes: number } {
    return native().cudaMemoryUse(this.ordinal)
  }

  /** Bytes that the driver has left to give, to this process or any other, besides what the arena holds. */
  get freeBytes(): number {
    return native().cudaFreeBytes(this.ordinal)
  }

  /** Whether the driver can pass memory on as file descriptors, which {@link allocateExportable} needs. */
  get canExport(): boolean {
    return native().cudaCanExport(this.ordinal)
  }

  /**
   * Zeroed memory of its own, outside of the arena, that other processes can map.
   * @throws ERR_MOE_EP_OUT_OF_MEMORY; ERR_MOE_EP_INTERNAL when the driver cannot.
   */
  allocateExportable(byteLength: number): Memory {
    return new Memory(this, native().cudaAllocateExportable(this.ordinal, requireByteLength(byteLength)))
  }

  /**
   * Maps memory that another process made with {@link allocateExportable}. The mapping outlives that process.
   * @param descriptor what {@link exportMemory} gave there, in this process (sent over a Unix socket); it can be closed afterwards.
   * @param byteLength the same as there.
   */
  importMemory(descriptor: number, byteLength: number): Memory {
    return new Memory(this, native().cudaImportMemory(this.ordinal, descriptor, requireByteLength(byteLength)))
  }

  /**
   * Zeroed memory of its own that other processes can map by CUDA's older handles, for drivers without {@link canExport}. Closed while
   * others map it, it is freed when `mappings` says that they do no more; what a process mapped that was killed is never freed.
   * @throws ERR_MOE_EP_OUT_OF_MEMORY; ERR_MOE_EP_ARGUMENT when `mappings` does not lie in open memory.
   */
  allocateIpc(byteLength: number, mappings: MappingCount): Memory {
    const { memory, byteOffset } = mappings
    const handle = native().cudaAllocateIpc(this.ordinal, requireByteLength(byteLength), memory.handle, byteOffset)
    return new Memory(this, handle)
  }

  /**
   * Maps memory of {@link allocateIpc}: another process's for as long as that one lives, this process's where it lies.
   * @param handle what {@link ipcHandle} gave there.
   * @param byteLength at most as there.
   * @param mappings the same count as there.
   * @throws ERR_MOE_EP_ARGUMENT for another handle or more bytes; ERR_MOE_EP_INTERNAL when the driver cannot.
   */
  openIpc(handle: Uint8Array, byteLength: number, mappings: MappingCount): Memory {
    const { memory, byteOffset } = mappings
    return new Memory(
      this,
      native().cudaOpenIpc(this.ordinal, handle, requireByteLength(byteLength), memory.handle, byteOffset),
    )
  }

  /** Whether kernels of this device can use the memory of `peer`. */
  canAccessPeer(peer: Device): boolean {
    requireCuda(peer)
    return native().cudaCanAccessPeer(this.ordinal, peer.ordinal)
  }

  /** Lets kernels of this device use memory that `peer` allocates in this process. Once is enough; twice is fine. */
  enablePeerAccess(peer: Device): void {
    requireCuda(peer)
    native().cudaEnablePeerAccess(this.ordinal, peer.ordinal)
  }
}

/**
 * A file descriptor for memory of `allocateExportable`, which the caller closes.
 * @throws ERR_MOE_EP_ARGUMENT for other memory.
 */
export function exportMemory(memory: Memory): number {
  requireCuda(memory.device)
  return native().cudaExportMemory(memory.handle)
}

/**
 * What stands for memory of `allocateIpc` in {@link CudaDevice.openIpc}, on this machine.
 * @throws ERR_MOE_EP_ARGUMENT for other memory.
 */
export function ipcHandle(memory: Memory): Uint8Array {
  requireCuda(memory.device)
  return native().cudaIpcHandle(memory.handle)
}
