import { readFileSync } from 'node:fs'
import type { Device } from '@moe-ep/core'
import type { LaunchKind } from '../command/bench-options.js'

const fallbackCacheBytes = 32 * 2 ** 20
const mostBytes = 256 * 2 ** 20
/** Of sets on the cpu. */
export const mostSets = 16

/** Bytes of the last-level cache as the kernel tells them; 32 MiB where it does not. */
export function lastLevelCacheBytes(file = '/sys/devices/system/cpu/cpu0/cache/index3/size'): number {
  try {
    const [, number, unit] = /^(\d+)([KM])\s*$/.exec(readFileSync(file, 'utf8')) ?? []
    return number === undefined ? fallbackCacheBytes : Number(number) * (unit === 'K' ? 2 ** 10 : 2 ** 20)
  } catch {
    return fallbackCacheBytes
  }
}

/**
 * Sets of buffers to take turns with, so that a set has left the caches when its turn comes again: three times the last-level
 * cache (256 MiB at most) divided by the bytes of a set, from 1 to 16. Sets of less than a sixteenth of that stay cached in part.
 */
export function rotatingSets(bytesPerSet: number, cacheBytes = lastLevelCacheBytes()): number {
  const wanted = Math.ceil(Math.min(3 * cacheBytes, mostBytes) / Math.max(1, bytesPerSet))
  return Math.min(mostSets, Math.max(1, wanted))
}

/** More than the L2 cache of any GPU that this was made for. */
const cudaCacheBytes = 60 * 2 ** 20
const mostCudaSets = 64

/** The same on any device. On cuda as many sets as fill three times 60 MiB, from 1 to 64. */
export function setsOf(device: Pick<Device, 'kind'>, bytesPerSet: number): number {
  if (device.kind === 'cpu') return rotatingSets(bytesPerSet)
  const wanted = Math.ceil((3 * cudaCacheBytes) / Math.max(1, bytesPerSet))
  return Math.min(mostCudaSets, Math.max(1, wanted))
}

const spanUs = 1000
const mostCalls: Readonly<Record<LaunchKind, number>> = { graph: 256, plan: 64, eager: 64 }

/**
 * Calls that are timed together on cuda, whole passes over all sets: as many as take a millisecond at 4 TB/s and 2 us or more a call, up to
 * 256 in a graph, to 64 where each is launched on its own, for a queue takes only so many.
 */
export function callsOf({ bytes, sets }: { bytes: number; sets: number }, launch: LaunchKind): number {
  const passUs = sets * Math.max(2, bytes / 4e6)
  const passes = Math.min(Math.ceil(spanUs / passUs), Math.floor(mostCalls[launch] / sets))
  return sets * Math.max(1, passes)
}

/** The set farthest from this one: for a second case on the same buffers, which would else find them cached by the first. */
export function oppositeSet(set: number, sets: number): number {
  return (set + Math.floor(sets / 2)) % sets
}
