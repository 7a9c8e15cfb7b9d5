import { statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { formatBytes } from '../support/format-bytes.js'

/** Type of a file system that keeps its files in memory (Linux tmpfs and ramfs). */
const memoryFileSystems = [0x01021994, 0x858458f6]

/** The disk that a file will lie on. */
export interface DiskSpace {
  /** Bytes that a user without privileges may still write. */
  readonly freeBytes: number
  /** Whether files there take memory. */
  readonly isMemory: boolean
}

/** What is known of the disk of `path`; undefined when its folder is not there or the system does not say. */
export async function diskSpaceFor(path: string): Promise<DiskSpace | undefined> {
  try {
    const { type, bavail, bsize } = await statfs(dirname(path))
    return { freeBytes: bavail * bsize, isMemory: memoryFileSystems.includes(type) }
  } catch {
    return undefined
  }
}

/** Throws ERR_MOE_EP_OUT_OF_MEMORY when so many bytes have no room beside what lies on the disk of `path`. */
export async function requireDiskSpace(path: string, neededBytes: number): Promise<void> {
  const availableBytes = (await diskSpaceFor(path))?.freeBytes ?? Infinity
  if (neededBytes <= availableBytes) return
  throw new MoeEpError(
    'ERR_MOE_EP_OUT_OF_MEMORY',
    `${path} needs ${formatBytes(neededBytes)} of disk space; ${formatBytes(availableBytes)} are free`,
    { details: { path, neededBytes, availableBytes } },
  )
}
