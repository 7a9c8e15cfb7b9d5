import { freemem } from 'node:os'
import { type CudaDevice, type Device, MoeEpError } from '@moe-ep/core'
import type { ProcessGroup } from '../rendezvous/index.js'
import type { SegmentSizes, SetUpWait, Sharing } from './shared-segments.js'

/** How memory of cuda devices is to be shared; `auto` leaves it to what all drivers can. */
export type SharingChoice = 'auto' | 'vmm' | 'ipc'

/** What a rank asks for and has, as it tells the others before anything is allocated. */
export interface Wish extends SegmentSizes {
  readonly kind: 'cpu' | 'cuda'
  readonly sharing: SharingChoice
  /** Names the GPU; empty on the cpu. */
  readonly gpu: string
  readonly canExport: boolean
  readonly freeBytes: number
}

export function wishOf(device: Device, sizes: SegmentSizes, sharing: SharingChoice): Wish {
  if (device.kind === 'cpu') {
    const freeBytes = Math.min(freemem(), process.constrainedMemory() || Infinity)
    return { ...sizes, kind: 'cpu', sharing, gpu: '', canExport: false, freeBytes }
  }
  const { uuid: gpu, canExport, freeBytes } = device as CudaDevice
  return { ...sizes, kind: 'cuda', sharing, gpu, canExport, freeBytes }
}

export function encodeWish(wish: Wish): Uint8Array {
  return Buffer.from(JSON.stringify(wish))
}

/** What all ranks have settled on. */
export interface Agreement {
  readonly sharing: Sharing
  /** Ranks whose memory lies on this rank's GPU, or machine on the cpu; itself among them. */
  readonly ranksOnDevice: number
}

/**
 * How memory will be shared. Decided from what all ranks said, hence alike on all, and before anything is allocated: memory of the host
 * can be taken until the machine has none left.
 * @throws ERR_MOE_EP_MISMATCH when ranks ask for different things; ERR_MOE_EP_UNSUPPORTED for `vmm` where a driver cannot;
 *   ERR_MOE_EP_OUT_OF_MEMORY for what cannot fit; ERR_MOE_EP_PROTOCOL.
 */
export async function agree(group: ProcessGroup, wish: Wish, wait: SetUpWait): Promise<Agreement> {
  const said = await group.allGather(encodeWish(wish), wait)
  const wishes = said.map(decodeWish)
  requireSame(wishes)
  const ranksOnDevices = countRanksOnDevices(group, wishes)
  requireFitting(wishes, ranksOnDevices)
  return { sharing: sharingOf(wishes), ranksOnDevice: ranksOnDevices[group.rank]! }
}

function requireSame(wishes: readonly Wish[]): void {
  const texts = wishes.map(describe)
  const different = texts.findIndex((text) => text !== texts[0])
  if (different < 0) return
  throw new MoeEpError(
    'ERR_MOE_EP_MISMATCH',
    `symmetric memory: rank 0 asked for ${texts[0]}, rank ${different} for ${texts[different]}`,
  )
}

function describe({ byteLength, numSignals, kind, sharing }: Wish): string {
  const where = kind === 'cpu' ? 'the cpu' : 'a cuda device'
  return `${byteLength} bytes and ${numSignals} signals on ${where}${sharing === 'auto' ? '' : ` by ${sharing}`}`
}

/** For every rank: how many have its GPU, or its machine on the cpu. */
function countRanksOnDevices({ topology }: ProcessGroup, wishes: readonly Wish[]): number[] {
  const places = wishes.map(({ kind, gpu }, rank) => (kind === 'cpu' ? `node ${topology.nodeOf(rank)}` : gpu))
  return places.map((place) => places.filter((other) => other === place).length)
}

function requireFitting(wishes: readonly Wish[], ranksOnDevices: readonly number[]): void {
  wishes.forEach(({ byteLength, kind, freeBytes }, rank) => {
    const ranks = ranksOnDevices[rank]!
    if (byteLength * ranks <= freeBytes) return
    throw new MoeEpError(
      'ERR_MOE_EP_OUT_OF_MEMORY',
      `symmetric memory of ${byteLength} bytes: rank ${rank}'s ${kind === 'cpu' ? 'machine' : 'GPU'} has ${freeBytes} bytes left for ${ranks} ranks`,
    )
  })
}

function sharingOf(wishes: readonly Wish[]): Sharing {
  const { kind, sharing } = wishes[0]!
  if (kind === 'cpu') return 'memfd'
  if (sharing === 'ipc') return 'ipc'
  const unable = wishes.findIndex(({ canExport }) => !canExport)
  if (unable < 0) return 'vmm'
  if (sharing === 'auto') return 'ipc'
  throw new MoeEpError(
    'ERR_MOE_EP_UNSUPPORTED',
    `symmetric memory by vmm: rank ${unable}'s driver cannot pass memory on as file descriptors`,
  )
}

/** @throws ERR_MOE_EP_PROTOCOL when a rank sent something else than a wish. */
function decodeWish(bytes: Uint8Array, rank: number): Wish {
  const wish = parse(bytes)
  const valid =
    isSize(wish.byteLength) &&
    isSize(wish.numSignals) &&
    (wish.kind === 'cpu' || wish.kind === 'cuda') &&
    (wish.sharing === 'auto' || wish.sharing === 'vmm' || wish.sharing === 'ipc') &&
    typeof wish.gpu === 'string' &&
    typeof wish.canExport === 'boolean' &&
    isSize(wish.freeBytes)
  if (valid) return wish as Wish
  throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `rank ${rank} sent a malformed wish for symmetric memory`)
}

function parse(bytes: Uint8Array): Partial<Wish> {
  try {
    return (JSON.parse(Buffer.from(bytes).toString()) ?? {}) as Partial<Wish>
  } catch {
    return {}
  }
}

function isSize(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
