import { readdirSync, readFileSync } from 'node:fs'
import { setImmediate, setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import {
  copyTensor,
  CudaDevice,
  type Device,
  getDefaultDevice,
  getDevice,
  listDevices,
  MoeEpError,
  type Stream,
  Tensor,
} from '@moe-ep/core'
import {
  type ConnectOptions,
  type ProcessGroup,
  SymmetricMemory,
  type SymmetricMemoryOptions,
} from '../../src/index.js'
import { requires } from '../../../../tooling/vitest/requirements.js'
import { closeWorld, openWorld } from '../rendezvous/world.js'

export { closeWorld, codesOf, failureOf, openWorld } from '../rendezvous/world.js'

/**
 * The same cases on every device: MOE_EP_DEVICE names it. Ranks of one process share a GPU, each with a stream of its own, but for
 * {@link deviceOfRank}.
 */
export const device = getDefaultDevice()

const spread = process.env['MOE_EP_TEST_SPREAD'] === '1'
const devices = spread
  ? listDevices().flatMap(({ name, available }) => (available && name !== 'cpu' ? [getDevice(name)] : []))
  : [device]
if (spread && (device.kind !== 'cuda' || devices.length < 2))
  throw new Error('MOE_EP_TEST_SPREAD=1 needs two GPUs, and MOE_EP_DEVICE to name one')

/**
 * Where a rank's stream is: on that device, or, with MOE_EP_TEST_SPREAD=1, on one of all GPUs in turn. Suites whose tensors
 * go where their rank's stream is can be run so.
 */
export const deviceOfRank = (rank: number): Device => devices[rank % devices.length]!

/** For what only the cpu has: `test.skipIf(!onCpu)`. */
export const onCpu = requires('the cpu device', () => device.kind === 'cpu' || `the tests run on ${device}`)

/** A memory on that device. */
export function createMemory(group: ProcessGroup, options: SymmetricMemoryOptions): Promise<SymmetricMemory> {
  return SymmetricMemory.create(group, { device, ...options })
}

/** A tensor of these bytes on that device. */
export function bytesTensor(bytes: Uint8Array): Tensor {
  return Tensor.copyOf(bytes, [bytes.length], 'u8', device)
}

/** What bytes of a payload are now, copied. */
export async function readBytes(
  memory: SymmetricMemory,
  byteOffset: number,
  length: number,
  rank = memory.group.rank,
): Promise<Uint8Array> {
  const tensor = memory.tensor({ byteOffset, shape: [length], dtype: 'u8', rank })
  return tensor.device.kind === 'cpu'
    ? Uint8Array.from(tensor.data as Uint8Array)
    : ((await tensor.read()) as Uint8Array)
}

/** Writes the bytes of a tensor, which nothing uses meanwhile. */
export async function writeBytes(tensor: Tensor, bytes: Uint8Array): Promise<void> {
  if (tensor.device.kind === 'cpu') return (tensor.data as Uint8Array).set(bytes)
  copyTensor(Tensor.wrap(bytes, [bytes.length], 'u8'), tensor)
  await tensor.device.defaultStream.synchronize()
}

/** One rank of a world inside this process: its own group and stream. */
export interface WorldRank {
  readonly rank: number
  readonly group: ProcessGroup
  readonly stream: Stream
}

/** A rank with a mapping of every peer. */
export interface MemoryRank extends WorldRank {
  readonly memory: SymmetricMemory
}

/** What ranks of a world are made with. */
export interface WorldOptions {
  readonly connect?: ConnectOptions
  /** Of each rank's stream. @default 1 */
  readonly threads?: (rank: number) => number
}

/**
 * What `capture` gives, once all ranks have captured. To make a graph the driver may wait for kernels that run, and these ranks
 * share a GPU and a thread: a kernel that waits for a peer would wait for that peer's capture.
 */
export async function captureTogether<Captured>({ group }: WorldRank, capture: () => Captured): Promise<Captured> {
  const captured = capture()
  await group.barrier()
  return captured
}

/** Runs `body` for all ranks of a world at the same time, each with what `open` gave it, then closes everything. */
export async function withWorldOf<Opened extends { close(): void }>(
  numRanks: number,
  { connect = {}, threads = () => 1 }: WorldOptions,
  open: (group: ProcessGroup) => Promise<Opened>,
  body: (ranks: readonly (WorldRank & { readonly opened: Opened })[]) => Promise<void>,
): Promise<void> {
  const groups = await openWorld(numRanks, connect)
  const streams = groups.map((_, rank) => deviceOfRank(rank).createStream({ threads: threads(rank) }))
  try {
    const all = await Promise.all(groups.map(open))
    await body(groups.map((group, rank) => ({ rank, group, stream: streams[rank]!, opened: all[rank]! })))
    for (const opened of all) opened.close()
  } finally {
    for (const stream of streams) stream.abort()
    await closeWorld(groups)
  }
}

/** Runs `body` with a symmetric memory over `numRanks` ranks, then closes everything. */
export async function withMemories(
  numRanks: number,
  options: SymmetricMemoryOptions & { readonly connect?: ConnectOptions },
  body: (ranks: readonly MemoryRank[]) => Promise<void>,
): Promise<void> {
  const { connect = {}, ...memoryOptions } = options
  const create = (group: ProcessGroup): Promise<SymmetricMemory> => createMemory(group, memoryOptions)
  await withWorldOf(numRanks, { connect }, create, (ranks) =>
    body(ranks.map(({ opened, ...rank }) => ({ ...rank, memory: opened }))),
  )
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

/** Segments of host memory that this process has mapped. */
export function countMappings(): number {
  // What a GPU is done with goes when somebody looks.
  if (device instanceof CudaDevice) void device.memoryUse
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
