import { type CudaDevice, exportMemory, getDevice, ipcHandle, Memory } from '@moe-ep/core'
import { native, type NativeCudaControl, type RoutesHandle } from '../native.js'
import type { ProcessGroup } from '../rendezvous/index.js'
import { mapPeers } from './map-peers.js'
import type { SegmentSizes, SetUpWait, SharedSegments } from './shared-segments.js'

/**
 * Signals and payload of each rank in memory of its GPU, and a control block in memory of the host, where the host writes why a group
 * must not go on and kernels see that it did.
 */
export class CudaSegments implements SharedSegments {
  readonly sharing: 'vmm' | 'ipc'
  readonly payloadOffset: number
  readonly memories: (Memory | undefined)[]
  readonly #controls: (Memory | undefined)[]
  readonly #device: CudaDevice
  readonly #rank: number
  readonly #sizes: SegmentSizes
  readonly #mappedBytes: number
  readonly #control: NativeCudaControl
  /** The addresses of all segments, for kernels. */
  readonly #bases: Memory

  /** @throws ERR_MOE_EP_OUT_OF_MEMORY; ERR_MOE_EP_UNSUPPORTED when this package was built without CUDA. */
  constructor(device: CudaDevice, group: ProcessGroup, sizes: SegmentSizes, sharing: 'vmm' | 'ipc') {
    const { payloadOffset, byteLength } = native().segmentLayout(sizes.byteLength, sizes.numSignals)
    this.sharing = sharing
    this.#device = device
    this.#rank = group.rank
    this.#sizes = sizes
    this.#mappedBytes = byteLength
    this.payloadOffset = payloadOffset
    this.#controls = Array.from({ length: group.worldSize })
    this.memories = Array.from({ length: group.worldSize })
    this.#control = native().createCudaControl(device.ordinal, sizes.byteLength, sizes.numSignals)
    const control = new Memory(device, this.#control.memory)
    this.#controls[group.rank] = control
    try {
      this.memories[group.rank] =
        sharing === 'vmm'
          ? device.allocateExportable(byteLength)
          : device.allocateIpc(byteLength, { memory: control, byteOffset: this.#control.mappingsOffset })
      this.#bases = device.allocate(8 * group.worldSize)
    } catch (error) {
      this.endSetUp()
      for (const memory of [...this.memories, ...this.#controls]) memory?.close()
      throw error
    }
  }

  async mapPeers(group: ProcessGroup, wait: SetUpWait): Promise<void> {
    const host = getDevice('cpu')
    const { descriptor, byteLength } = this.#control
    const controls = await mapPeers(
      { ...wait, group, descriptor },
      (theirs) => new Memory(host, native().mapSegment(theirs, byteLength)),
    )
    for (const [peer, memory] of controls) this.#controls[peer] = memory
    await (this.sharing === 'vmm' ? this.#importPeers(group, wait) : this.#openPeers(group, wait))
  }

  async #importPeers(group: ProcessGroup, wait: SetUpWait): Promise<void> {
    const descriptor = exportMemory(this.memories[this.#rank]!)
    try {
      const mapped = await mapPeers({ ...wait, group, descriptor }, (theirs) =>
        this.#device.importMemory(theirs, this.#mappedBytes),
      )
      for (const [peer, memory] of mapped) this.memories[peer] = memory
    } finally {
      native().closeDescriptor(descriptor)
    }
  }

  async #openPeers(group: ProcessGroup, wait: SetUpWait): Promise<void> {
    const handles = await group.allGather(ipcHandle(this.memories[this.#rank]!), wait)
    this.#controls.forEach((memory, peer) => {
      if (memory === undefined || peer === this.#rank) return
      const mappings = { memory, byteOffset: this.#control.mappingsOffset }
      this.memories[peer] = this.#device.openIpc(handles[peer]!, this.#mappedBytes, mappings)
    })
  }

  createRoutes(): RoutesHandle {
    return native().createCudaRoutes(
      this.#device.ordinal,
      this.#rank,
      this.memories.map((memory) => memory?.handle),
      this.#controls.map((memory) => memory?.handle),
      this.#bases.handle,
      this.#sizes.numSignals,
      this.#sizes.byteLength,
      this.#control.hostPoison,
      this.#control.poisonId,
    )
  }

  endSetUp(): void {
    native().closeDescriptor(this.#control.descriptor)
  }

  close(): void {
    for (const memory of [...this.memories, ...this.#controls, this.#bases]) memory?.close()
  }
}
