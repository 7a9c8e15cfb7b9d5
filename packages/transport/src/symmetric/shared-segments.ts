import type { Memory } from '@moe-ep/core'
import type { RoutesHandle } from '../native.js'
import type { ProcessGroup } from '../rendezvous/index.js'

/**
 * How ranks of a node share memory: `memfd` on the cpu; on cuda devices `vmm`, virtual memory that is passed on as file descriptors,
 * or `ipc`, CUDA's older handles.
 */
export type Sharing = 'memfd' | 'vmm' | 'ipc'

/** The sizes of one rank's part, the same on every rank. */
export interface SegmentSizes {
  /** Of the payload. */
  readonly byteLength: number
  readonly numSignals: number
}

/** How long the collective set-up may take, and under which name. */
export interface SetUpWait {
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
  readonly label: string
}

/** What a symmetric memory is made of on one kind of device. Making one allocates this rank's own part; it throws what that throws. */
export interface SharedSegments {
  readonly sharing: Sharing
  /** Where the payload begins in each of the memories. */
  readonly payloadOffset: number
  /** By rank: this rank's own, and those of the node's ranks once they are mapped. */
  readonly memories: readonly (Memory | undefined)[]
  /** Maps the parts of this node's ranks; collective. */
  mapPeers(group: ProcessGroup, wait: SetUpWait): Promise<void>
  /** The native table, once all is mapped. */
  createRoutes(): RoutesHandle
  /** Gives back what only the set-up needs. */
  endSetUp(): void
  /** Unmaps everything as soon as queued work is done. */
  close(): void
}
