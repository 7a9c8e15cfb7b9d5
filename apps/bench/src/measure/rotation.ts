import { readFileSync } from 'node:fs'

const fallbackCacheBytes = 32 * 2 ** 20
const mostBytes = 256 * 2 ** 20
const mostSets = 16

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

/** The set farthest from this one: for a second case on the same buffers, which would else find them cached by the first. */
export function oppositeSet(set: number, sets: number): number {
  return (set + Math.floor(sets / 2)) % sets
}
