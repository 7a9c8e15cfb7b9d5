import { availableParallelism } from 'node:os'
import { type Device, Memory } from '@moe-ep/core'
import { native, type RoutesHandle } from '../native.js'
import type { ProcessGroup } from '../rendezvous/index.js'
import { mapPeers } from './map-peers.js'
import type { SegmentSizes, SetUpWait, SharedSegments } from './shared-segments.js'

/** A memfd of each rank, with control block, signals and payload in one. */
export class CpuSegments implements SharedSegments {
  readonly sharing = 'memfd'
  readonly payloadOffset: number
  readonly memories: (Memory | undefined)[]
  readonly #device: Device
  readonly #rank: number
  readonly #sizes: SegmentSizes
  readonly #mappedBytes: number
  readonly #descriptor: number

  /** @throws ERR_MOE_EP_OUT_OF_MEMORY; ERR_MOE_EP_CONNECT. */
  constructor(device: Device, group: ProcessGroup, sizes: SegmentSizes) {
    const segment = native().createSegment(sizes.byteLength, sizes.numSignals)
    this.#device = device
    this.#rank = group.rank
    this.#sizes = sizes
    this.#mappedBytes = segment.byteLength
    this.#descriptor = segment.descriptor
    this.payloadOffset = segment.payloadOffset
    this.memories = Array.from({ length: group.worldSize })
    this.memories[group.rank] = new Memory(device, segment.memory)
  }

  async mapPeers(group: ProcessGroup, wait: SetUpWait): Promise<void> {
    const mapped = await mapPeers(
      { ...wait, group, descriptor: this.#descriptor },
      (descriptor) => new Memory(this.#device, native().mapSegment(descriptor, this.#mappedBytes)),
    )
    for (const [peer, memory] of mapped) this.memories[peer] = memory
  }

  createRoutes(): RoutesHandle {
    const handles = this.memories.map((memory) => memory?.handle)
    const spins = spinIterations(this.memories.filter((memory) => memory !== undefined).length)
    return native().createRoutes(this.#rank, handles, this.#sizes.numSignals, this.#sizes.byteLength, spins)
  }

  endSetUp(): void {
    native().closeDescriptor(this.#descriptor)
  }

  close(): void {
    for (const memory of this.memories) memory?.close()
  }
}

/** Spinning only pays where every rank of the node has a core of its own. */
function spinIterations(ranksOfNode: number): number {
  return availableParallelism() >= 2 * ranksOfNode ? 4000 : 100
}
