import { readdirSync, readFileSync } from 'node:fs'
import { setImmediate, setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { getDevice, MoeEpError, type Stream } from '@moe-ep/core'
import {
  type ConnectOptions,
  type ProcessGroup,
  SymmetricMemory,
  type SymmetricMemoryOptions,
} from '../../src/index.js'
import { closeWorld, openWorld } from '../rendezvous/world.js'

export { closeWorld, codesOf, failureOf, openWorld } from '../rendezvous/world.js'

export const device = getDevice('cpu')

/** One rank of a world inside this process: its own group, stream and mapping of every peer. */
export interface MemoryRank {
  readonly rank: number
  readonly group: ProcessGroup
  readonly stream: Stream
  readonly memory: SymmetricMemory
}

/** Runs `body` with a symmetric memory over `numRanks` ranks, then closes everything. */
export async function withMemories(
  numRanks: number,
  options: SymmetricMemoryOptions & { readonly connect?: ConnectOptions },
  body: (ranks: readonly MemoryRank[]) => Promise<void>,
): Promise<void> {
  const { connect = {}, ...memoryOptions } = options
  const groups = await openWorld(numRanks, connect)
  const streams = groups.map(() => device.createStream({ threads: 1 }))
  try {
    const memories = await Promise.all(groups.map((group) => SymmetricMemory.create(group, memoryOptions)))
    await body(groups.map((group, rank) => ({ rank, group, stream: streams[rank]!, memory: memories[rank]! })))
    for (const memory of memories) memory.close()
  } finally {
    for (const stream of streams) stream.abort()
    await closeWorld(groups)
  }
}

/** What a synchronous call throws; returning is an error. */
export function thrownBy(call: () => unknown): MoeEpError {
  try {
    call()
  } catch (error) {
    if (MoeEpError.isInstance(error)) return error
    throw new Error('threw something else than a MoeEpError', { cause: error })
  }
  throw new Error('returned where a throw was expected')
}

/** Polls until `look` gives true. A limit far beyond what is needed, so that no slow machine fails. */
export async function eventually(look: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + 20_000
  while (!look()) {
    if (performance.now() > deadline) throw new Error(`never came true: ${what}`)
    await sleep(10)
  }
}

/** Open descriptors of this process. */
export function countDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

/** Segments that this process has mapped. */
export function countMappings(): number {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('memfd:moe-ep')).length
}

/** Abstract sockets that carry descriptors, of all processes of the machine. */
export function descriptorSockets(): string[] {
  return readFileSync('/proc/net/unix', 'utf8').match(/@moe-ep-[0-9a-f]+/g) ?? []
}

/** Other tests open such sockets for moments; one that was leaked would never go. */
export async function noSocketStays(): Promise<void> {
  const seen = descriptorSockets()
  await eventually(() => !descriptorSockets().some((name) => seen.includes(name)), `sockets close: ${seen.join(', ')}`)
}

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

/** A full collection, and a turn of the loop for the finalizers. */
export async function collectGarbage(): Promise<void> {
  gc()
  await setImmediate()
}
