import { MoeEpError, argumentError } from '@moe-ep/core'
import { onAbort, startDeadline } from './deadline.js'
import { errorFromReport, reportFromError } from './failure-report.js'
import { closeTimeoutMs, maxLabelBytes, maxTimeoutMs } from './limits.js'
import { type Link, describeCollective } from './link.js'
import type { CollectiveKind } from './messages.js'
import type { Topology } from './topology.js'

/** How one collective waits. */
export interface CollectiveOptions {
  /** Deadline in milliseconds. @default the group's */
  readonly timeoutMs?: number | undefined
  /**
   * Gives up when it aborts. The group then fails on all ranks, for a half-done collective cannot be resumed. A
   * signal that has aborted before the call only rejects the call: nothing has begun.
   */
  readonly signal?: AbortSignal | undefined
  /** A name of up to 200 bytes for messages; ranks must pass the same one. */
  readonly label?: string | undefined
}

/** How `close` waits. */
export interface CloseOptions {
  /** Deadline in milliseconds; connections that are still open then are cut. @default the group's, at most 5000 */
  readonly timeoutMs?: number | undefined
  /** Cuts the connections when it aborts. */
  readonly signal?: AbortSignal | undefined
}

/** What a group is made of. @internal */
export interface ProcessGroupParts {
  readonly topology: Topology
  readonly timeoutMs: number
  readonly maxFrameBytes: number
  readonly link: Link
}

interface PendingCall {
  readonly kind: CollectiveKind
  resolve(parts: readonly Uint8Array[]): void
  reject(error: MoeEpError): void
}

/**
 * The ranks of one run, as `connect()` brought them together. All ranks call the same collectives in the same
 * order; calls may overlap. Once anything has failed, everything on every rank rejects with that failure: close the
 * group and connect anew.
 */
export class ProcessGroup implements AsyncDisposable {
  /** Which rank runs where. */
  readonly topology: Topology
  /** Default deadline of the collectives in milliseconds. */
  readonly timeoutMs: number
  readonly #maxFrameBytes: number
  readonly #link: Link
  readonly #pending = new Map<number, PendingCall>()
  readonly #listeners = new Set<(error: MoeEpError) => void>()
  #nextSequence = 1
  #failure: MoeEpError | undefined
  #closed: Promise<void> | undefined

  /** @internal use `connect()` */
  constructor(parts: ProcessGroupParts) {
    this.topology = parts.topology
    this.timeoutMs = parts.timeoutMs
    this.#maxFrameBytes = parts.maxFrameBytes
    this.#link = parts.link
    this.#link.start({
      done: (sequence, bytes) => this.#pending.get(sequence)?.resolve(bytes),
      failed: (report) => this.#fail(errorFromReport(report, this.rank)),
    })
  }

  /** This rank, in [0, worldSize). */
  get rank(): number {
    return this.topology.rank
  }

  /** Number of ranks. */
  get worldSize(): number {
    return this.topology.worldSize
  }

  /** Why the group failed, or `undefined` while it works. */
  get failure(): MoeEpError | undefined {
    return this.#failure
  }

  /**
   * Gives the bytes that every rank passed, indexed by rank. Ranks may pass different lengths, also none. The bytes
   * are copied before the call returns, and the results are fresh arrays of their own.
   *
   * @throws ERR_MOE_EP_ARGUMENT for more than the group's `maxFrameBytes`; ERR_MOE_EP_TIMEOUT naming the missing
   *   ranks, ERR_MOE_EP_ABORTED, ERR_MOE_EP_PEER_LOST, ERR_MOE_EP_PROTOCOL when ranks called different collectives,
   *   ERR_MOE_EP_RELEASED after `close`
   */
  allGather(bytes: Uint8Array, options: CollectiveOptions = {}): Promise<Uint8Array[]> {
    return handled(this.#collective('allGather', bytes, options))
  }

  /**
   * Resolves once every rank has called it.
   *
   * @throws as {@link allGather}
   */
  barrier(options: CollectiveOptions = {}): Promise<void> {
    return handled(this.#collective('barrier', new Uint8Array(0), options).then(() => {}))
  }

  /**
   * Fails the group on every rank: all pending and later calls reject, here with `error` itself, elsewhere with an
   * error of the same code whose cause names this rank. Does nothing when the group has failed or was closed.
   */
  abort(error: MoeEpError): void {
    const failure = MoeEpError.from(error, 'ERR_MOE_EP_ABORTED')
    if (this.#failure || this.#closed) return
    this.#link.fail(reportFromError(failure, this.rank))
    this.#fail(failure)
  }

  /** Calls `listener` once when the group fails, at once if it has already. The returned function stops listening. */
  onFailure(listener: (error: MoeEpError) => void): () => void {
    if (this.#failure) {
      listener(this.#failure)
      return () => {}
    }
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /**
   * Says goodbye and closes the connections; never rejects for what peers do. For them it is no loss, but a
   * collective that they call afterwards fails the group with ERR_MOE_EP_ABORTED. Calls of this rank that are still
   * pending reject with that code too.
   *
   * @throws ERR_MOE_EP_ARGUMENT for a bad option
   */
  close(options: CloseOptions = {}): Promise<void> {
    if (!this.#closed) {
      const { timeoutMs = Math.min(this.timeoutMs, closeTimeoutMs), signal } = options
      if (!isTimeout(timeoutMs)) return handled(Promise.reject(timeoutError(timeoutMs)))
      this.#closed = handled(this.#close(timeoutMs, signal))
    }
    return this.#closed
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  async #close(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const error = new MoeEpError(
      'ERR_MOE_EP_ABORTED',
      `rank ${this.rank}: the group was closed before all ranks had called`,
    )
    this.#rejectPending(error)
    this.#listeners.clear()
    await this.#link.leave(timeoutMs, signal)
  }

  async #collective(kind: CollectiveKind, bytes: Uint8Array, options: CollectiveOptions): Promise<Uint8Array[]> {
    const { timeoutMs = this.timeoutMs, signal, label = '' } = options
    this.#check(bytes, timeoutMs, label)
    const sequence = this.#nextSequence++
    const name = describeCollective({ kind, label, sequence })
    if (this.#closed)
      throw new MoeEpError('ERR_MOE_EP_RELEASED', `rank ${this.rank}: ${name} was called on a closed group`)
    if (this.#failure) throw this.#failure
    if (signal?.aborted) {
      this.#nextSequence--
      const message = `rank ${this.rank}: ${name} was aborted before it began`
      throw new MoeEpError('ERR_MOE_EP_ABORTED', message, { cause: signal.reason })
    }
    const cleanUps: (() => void)[] = []
    try {
      const parts = await new Promise<readonly Uint8Array[]>((resolve, reject) => {
        this.#pending.set(sequence, { kind, resolve, reject })
        cleanUps.push(startDeadline(timeoutMs, () => this.#link.expire(sequence, timeoutMs)))
        const message = `${name} was aborted on rank ${this.rank}`
        cleanUps.push(onAbort(signal, (cause) => this.abort(new MoeEpError('ERR_MOE_EP_ABORTED', message, { cause }))))
        this.#link.contribute({ sequence, kind, label, bytes: new Uint8Array(bytes) })
      })
      return kind === 'barrier' ? [] : parts.map((part) => new Uint8Array(part))
    } finally {
      this.#pending.delete(sequence)
      for (const cleanUp of cleanUps) cleanUp()
    }
  }

  #check(bytes: Uint8Array, timeoutMs: number, label: string): void {
    if (!isTimeout(timeoutMs)) throw timeoutError(timeoutMs)
    if (!(bytes instanceof Uint8Array)) throw argumentError('bytes', 'a Uint8Array', bytes)
    if (bytes.length > this.#maxFrameBytes)
      throw argumentError('bytes', `at most ${this.#maxFrameBytes} bytes`, bytes.length)
    if (typeof label !== 'string' || Buffer.byteLength(label) > maxLabelBytes) {
      throw argumentError('label', `a string of at most ${maxLabelBytes} bytes`, label)
    }
  }

  #fail(error: MoeEpError): void {
    if (this.#failure || this.#closed) return
    this.#failure = error
    this.#rejectPending(error)
    const listeners = [...this.#listeners]
    this.#listeners.clear()
    for (const listener of listeners) callSafely(listener, error)
  }

  #rejectPending(error: MoeEpError): void {
    for (const call of this.#pending.values()) call.reject(error)
    this.#pending.clear()
  }
}

/**
 * Marks a promise as handled: a failed group rejects all its calls, also those that nobody happens to await just
 * then.
 */
export function handled<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => {})
  return promise
}

/** A listener's own mistake is reported as an uncaught exception, but keeps no other listener from hearing. */
function callSafely(listener: (error: MoeEpError) => void, error: MoeEpError): void {
  try {
    listener(error)
  } catch (mistake) {
    queueMicrotask(() => {
      throw mistake
    })
  }
}

function isTimeout(timeoutMs: number): boolean {
  return Number.isInteger(timeoutMs) && timeoutMs >= 1 && timeoutMs <= maxTimeoutMs
}

function timeoutError(timeoutMs: number): MoeEpError {
  return argumentError('timeoutMs', `an integer from 1 to ${maxTimeoutMs}`, timeoutMs)
}
