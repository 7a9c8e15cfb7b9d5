import type { Device } from '@moe-ep/core'
import type { LowLatencyBufferSizes } from './buffer-layout.js'

/** How a buffer is made. */
export interface LowLatencyBufferOptions extends LowLatencyBufferSizes {
  /** Whose memory messages lie in, and whose streams run the calls. @default the default device (`getDefaultDevice()` of core) */
  readonly device?: Device
  /** Deadline of every wait for a peer. @default the group's */
  readonly timeoutMs?: number
  /**
   * Multiprocessors of a cuda device that a call takes, without effect on results. Kernels wait for those of other ranks, so that the
   * blocks of all ranks that share a GPU must find room there. @default all, divided by the ranks that share the GPU
   */
  readonly numSms?: number
  /** Gives up the collective set-up. */
  readonly signal?: AbortSignal
}
