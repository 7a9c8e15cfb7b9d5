import { MoeEpError } from '@moe-ep/core'
import type { ModelShape } from '../presets/model-preset.js'
import { formatBytes } from '../support/format-bytes.js'

/** What decides how much memory a run takes. */
export interface MemoryNeedOptions {
  readonly shape: ModelShape
  /** Intermediate size of the shared expert; 0 where there is none. */
  readonly sharedIntermediate: number
  /** Tokens of each rank. */
  readonly tokens: readonly number[]
  /** Symmetric memory of each rank's dispatch buffer. */
  readonly bufferBytesPerRank: number
  /** The weights file, where it is still to be made on a disk that is memory; else 0. */
  readonly fileBytes: number
}

/** Bytes that a run takes at most, all ranks together. */
export interface MemoryNeed {
  /** Experts of all ranks, and each rank's copy of gate and shared expert, widened to f32. */
  readonly weights: number
  /** One expert at a time on each rank, as stored and as widened, while weights are read and checked. */
  readonly reading: number
  /** Token rows on their way: as sent, received, permuted, widened, and their sums in the check. */
  readonly rows: number
  readonly buffers: number
  readonly file: number
  /** What a process needs before it holds any of this. */
  readonly processes: number
  readonly total: number
}

/** Resident size of a rank with its addons and libraries loaded, rounded up. */
const processBytes = 160 * 2 ** 20
const f32Bytes = 4
/**
 * An expert that was just used may not have been collected when the next one is read: two widened, and one as stored or
 * in parts.
 */
const expertsAlive = 3

/** The memory that a run will need, from its sizes alone. */
export function memoryNeed(options: MemoryNeedOptions): MemoryNeed {
  const { shape, sharedIntermediate, tokens, bufferBytesPerRank, fileBytes } = options
  const { hidden, intermediate, experts, topk } = shape
  const ranks = tokens.length
  const expertBytes = 3 * intermediate * hidden * f32Bytes
  const perRank = (experts + 3 * sharedIntermediate) * hidden * f32Bytes
  const numTokens = tokens.reduce((sum, count) => sum + count, 0)
  // For each slot: a permuted row and its result in bf16, both widened, and 3 intermediate rows. For each token: input,
  // output, reference and its sums.
  const rowBytes = topk * (12 * hidden + 3 * f32Bytes * intermediate) + 24 * hidden
  const parts = {
    weights: experts * expertBytes + ranks * perRank,
    reading: ranks * expertsAlive * Math.max(expertBytes, 3 * sharedIntermediate * hidden * f32Bytes),
    rows: numTokens * rowBytes,
    buffers: ranks * bufferBytesPerRank,
    file: fileBytes,
    processes: ranks * processBytes,
  }
  return { ...parts, total: Object.values(parts).reduce((sum, bytes) => sum + bytes, 0) }
}

/**
 * Refuses a run that does not fit, before anything is allocated.
 * @throws ERR_MOE_EP_OUT_OF_MEMORY with the bytes needed, part by part, and the bytes available.
 */
export function requireMemory(model: string, need: MemoryNeed, availableBytes: number): void {
  if (need.total <= availableBytes) return
  const { total, ...parts } = need
  const list = Object.entries(parts).flatMap(([name, bytes]) => (bytes > 0 ? [`${name} ${formatBytes(bytes)}`] : []))
  throw new MoeEpError(
    'ERR_MOE_EP_OUT_OF_MEMORY',
    `${model} needs ${formatBytes(total)} of memory; ${formatBytes(availableBytes)} are available. ` +
      `Needed for ${list.join(', ')}`,
    { details: { neededBytes: total, availableBytes } },
  )
}
