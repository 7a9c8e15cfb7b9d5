import { availableParallelism } from 'node:os'
import { argumentError, MoeEpError } from './error.js'
import { unsupportedPlatform } from './load-addon.js'
import { Memory } from './memory.js'
import { native } from './native.js'
import { Stream, type StreamOptions } from './stream.js'

/** What `listDevices()` says of one device. */
export interface DeviceInfo {
  /** `cpu` or `cuda:<ordinal>`. */
  readonly name: string
  readonly available: boolean
  /** Why it is not available. */
  readonly reason?: string
}

/** A place where memory lives and work runs. Get one from {@link getDevice}. */
export class Device {
  readonly name: string
  readonly kind: 'cpu'
  #defaultStream: Stream | undefined

  /** @internal Use {@link getDevice}. */
  constructor(name: 'cpu') {
    this.name = name
    this.kind = 'cpu'
  }

  /** The stream that operations use when none is given; made at first use. */
  get defaultStream(): Stream {
    if (this.#defaultStream === undefined || this.#defaultStream.closed) this.#defaultStream = this.createStream()
    return this.#defaultStream
  }

  /** A new ordered queue with native threads of its own. */
  createStream(options: StreamOptions = {}): Stream {
    return new Stream(this, { threads: options.threads ?? defaultThreads() })
  }

  /**
   * Zeroed memory, aligned to 128 bytes or more.
   * @throws ERR_MOE_EP_OUT_OF_MEMORY.
   */
  allocate(byteLength: number): Memory {
    if (!Number.isSafeInteger(byteLength) || byteLength < 0)
      throw argumentError('byteLength', 'bytes, 0 or more', byteLength)
    return new Memory(this, native().allocate(byteLength))
  }

  toString(): string {
    return this.name
  }
}

/**
 * Threads of a stream when none are asked for: MOE_EP_CPU_THREADS, else the machine's cores divided by the ranks that a
 * launcher started on it (LOCAL_WORLD_SIZE, else WORLD_SIZE).
 */
function defaultThreads(): number {
  const chosen = Number(process.env['MOE_EP_CPU_THREADS'])
  if (Number.isInteger(chosen) && chosen >= 1) return Math.min(chosen, 256)
  const ranks = Number(process.env['LOCAL_WORLD_SIZE'] ?? process.env['WORLD_SIZE'] ?? 1)
  return Math.max(1, Math.floor(availableParallelism() / (ranks >= 1 ? ranks : 1)))
}

let cpu: Device | undefined

/** All devices that this build knows of, with the reason for each that cannot be used. Never throws. */
export function listDevices(): readonly DeviceInfo[] {
  const reason = cpuFailure()?.message
  return [reason === undefined ? { name: 'cpu', available: true } : { name: 'cpu', available: false, reason }]
}

function cpuFailure(): MoeEpError | undefined {
  const unsupported = unsupportedPlatform()
  if (unsupported !== undefined) return new MoeEpError('ERR_MOE_EP_NO_DEVICE', unsupported)
  try {
    native()
    return undefined
  } catch (error) {
    return MoeEpError.from(error)
  }
}

/**
 * The device of this name.
 * @throws ERR_MOE_EP_NO_DEVICE when it is not there, with the reason; ERR_MOE_EP_DUPLICATE_CORE; ERR_MOE_EP_ARGUMENT for a name that
 * is none.
 */
export function getDevice(name: string): Device {
  if (name === 'cpu') {
    const failure = cpu === undefined ? cpuFailure() : undefined
    if (failure?.code === 'ERR_MOE_EP_DUPLICATE_CORE') throw failure
    if (failure !== undefined)
      throw new MoeEpError('ERR_MOE_EP_NO_DEVICE', `cpu: ${failure.message}`, { cause: failure })
    return (cpu ??= new Device('cpu'))
  }
  if (/^cuda:\d+$/.test(name)) {
    throw new MoeEpError('ERR_MOE_EP_NO_DEVICE', `${name}: this build of @moe-ep/core has the cpu device only`)
  }
  throw argumentError('name', '"cpu" or "cuda:<ordinal>"', name)
}
