import { availableParallelism } from 'node:os'
import { requireByteLength } from './device-checks.js'
import { argumentError, MoeEpError } from './error.js'
import { Memory } from './memory.js'
import { native } from './native.js'
import { Stream, type StreamOptions } from './stream.js'

/** How memory is allocated. */
export interface AllocateOptions {
  /** @default true. Memory that is not zeroed holds anything. */
  readonly zeroed?: boolean
  /** On cuda devices, zeroes in the order of this stream; without it the bytes are zero when the call returns, which waits for them. */
  readonly stream?: Stream
}

/** A place where memory lives and work runs. Get one from {@link getDevice}. */
export abstract class Device {
  /** `cpu` or `cuda:<ordinal>`. */
  abstract readonly name: string
  abstract readonly kind: 'cpu' | 'cuda'
  /** CUDA ordinal, -1 for the cpu. */
  abstract readonly ordinal: number
  #defaultStream: Stream | undefined

  /** The stream that operations use when none is given; made at first use. */
  get defaultStream(): Stream {
    if (this.#defaultStream === undefined || this.#defaultStream.closed) this.#defaultStream = this.createStream()
    return this.#defaultStream
  }

  /** A new ordered queue of work. */
  abstract createStream(options?: StreamOptions): Stream

  /**
   * Memory of the device, aligned to 128 bytes or more, zeroed unless asked otherwise.
   * @throws ERR_MOE_EP_OUT_OF_MEMORY.
   */
  abstract allocate(byteLength: number, options?: AllocateOptions): Memory

  toString(): string {
    return this.name
  }
}

/** The host's processor: streams are native threads. */
export class CpuDevice extends Device {
  readonly name = 'cpu'
  readonly kind = 'cpu'
  readonly ordinal = -1

  /** A new ordered queue with native threads of its own. */
  createStream(options: StreamOptions = {}): Stream {
    const { threads = defaultThreads() } = options
    if (!Number.isInteger(threads) || threads < 1 || threads > 256) throw argumentError('threads', '1 to 256', threads)
    return new Stream(this, threads, native().createStream(threads))
  }

  allocate(byteLength: number): Memory {
    return new Memory(this, native().allocate(requireByteLength(byteLength)))
  }
}

/**
 * Threads of a stream when none are asked for, 256 at most: MOE_EP_CPU_THREADS, else the machine's cores divided by the ranks that a
 * launcher started on it (LOCAL_WORLD_SIZE, else WORLD_SIZE).
 * @throws ERR_MOE_EP_CONFIG when MOE_EP_CPU_THREADS is no number of threads.
 */
function defaultThreads(): number {
  const chosen = process.env['MOE_EP_CPU_THREADS']
  if (chosen) {
    if (/^[1-9]\d{0,8}$/.test(chosen)) return Math.min(Number(chosen), 256)
    const received = JSON.stringify(chosen)
    throw new MoeEpError(
      'ERR_MOE_EP_CONFIG',
      `MOE_EP_CPU_THREADS: expected an integer, 1 or more, received ${received}`,
    )
  }
  const ranks = Number(process.env['LOCAL_WORLD_SIZE'] ?? process.env['WORLD_SIZE'] ?? 1)
  return Math.min(256, Math.max(1, Math.floor(availableParallelism() / (ranks >= 1 ? ranks : 1))))
}
