import { requireCuda } from './device-checks.js'
import type { Device } from './device.js'
import type { ErrorCode } from './error-codes.js'
import { argumentError, MoeEpError } from './error.js'
import { Event } from './event.js'
import { native, type StreamHandle } from './native.js'
import { requireWaitOptions, type WaitOptions, withWaitOptions } from './wait-options.js'

/** How a stream is made. */
export interface StreamOptions {
  /** Native threads that share the loops of one operation (1 to 256); without effect on cuda. Results never depend on it. */
  readonly threads?: number
}

/**
 * An ordered queue of work on a device. Enqueuing returns at once; waiting is `await`.
 *
 * When an operation fails, later work of the stream is skipped and the next await of the stream, or of an event recorded
 * after the failure, rejects with the operation's code.
 */
export class Stream implements AsyncDisposable {
  readonly device: Device
  readonly threads: number
  readonly handle: StreamHandle
  #closed = false

  /** @internal Use `device.createStream`. */
  constructor(device: Device, threads: number, handle: StreamHandle) {
    this.device = device
    this.threads = threads
    this.handle = handle
  }

  /**
   * The `cudaStream_t` behind a cuda stream, for work of others.
   * @throws ERR_MOE_EP_ARGUMENT for a cpu stream.
   */
  get cudaHandle(): bigint {
    requireCuda(this.device)
    return native().cudaStreamHandle(this.handle)
  }

  get closed(): boolean {
    return this.#closed
  }

  /**
   * Whether what is enqueued now is recorded into a graph: by {@link Graph.capture} of this stream or of one that it joined, or by the
   * owner of a wrapped stream.
   */
  get capturing(): boolean {
    return native().streamCapturing(this.handle)
  }

  /** Whether what is enqueued now runs later and may run often: it is captured, or kept by {@link Plan.of}. */
  get recording(): boolean {
    return native().streamRecording(this.handle)
  }

  /**
   * Resolves when all work enqueued so far is done.
   * @throws the code of the first operation that failed since the last await; ERR_MOE_EP_CAPTURE during a capture;
   * ERR_MOE_EP_ARGUMENT for bad options; ERR_MOE_EP_TIMEOUT or ERR_MOE_EP_ABORTED when the options say so (the work itself goes on).
   */
  async synchronize(options: WaitOptions = {}): Promise<void> {
    this.#requireOpen()
    requireWaitOptions(options)
    await withWaitOptions(native().streamSynchronize(this.handle), 'stream.synchronize', options)
  }

  /** Marks the current end of the queue in `event` (a new one by default). */
  record(event: Event = new Event(this.device)): Event {
    this.#requireOpen()
    native().streamRecord(this.handle, event.handle, true)
    return event
  }

  /**
   * An event for the current end of the queue that is there to be waited for: in a graph of a cuda device it tells the time of the end of
   * the launch, since telling its own would be a step between the work before and the work behind it. What operations return.
   */
  mark(): Event {
    this.#requireOpen()
    const event = new Event(this.device)
    native().streamRecord(this.handle, event.handle, false)
    return event
  }

  /**
   * Makes later work of this stream wait for the newest recording of `event`; no wait when there is none. In a capture, a stream joins
   * by waiting for an event that the capture recorded; a wait for any other recording becomes part of the graph.
   * @throws ERR_MOE_EP_CAPTURE when another capture than this stream's recorded the event, also one by the owner of a wrapped stream
   * that still goes on.
   */
  wait(event: Event): void {
    this.#requireOpen()
    native().streamWait(this.handle, event.handle, true)
  }

  /**
   * As {@link wait}, but a failure before the event stays with its own stream. For memory that is used again: its last user was told
   * how that went, and the next one only has to come later.
   * @throws as {@link wait}.
   */
  follow(event: Event): void {
    this.#requireOpen()
    native().streamWait(this.handle, event.handle, false)
  }

  /** Enqueues a pause. For tests and for shaking orders: it computes nothing. */
  delay(microseconds: number): void {
    this.#requireOpen()
    if (!Number.isSafeInteger(microseconds) || microseconds < 0)
      throw argumentError('microseconds', '0 or more', microseconds)
    native().streamDelay(this.handle, microseconds)
  }

  /** Enqueues a failure, as if an operation had failed here. */
  fail(code: ErrorCode, message: string): void {
    this.#requireOpen()
    native().streamFail(this.handle, code, message)
  }

  /** Waits for the queued work, then ends the stream's threads. */
  async close(): Promise<void> {
    if (this.#closed) return
    const done = native().streamSynchronize(this.handle)
    this.#closed = true
    native().streamClose(this.handle, false)
    await done
  }

  /** Ends the stream now: running waits stop early, queued work is dropped, and awaits that are pending reject with ERR_MOE_EP_ABORTED. */
  abort(): void {
    if (this.#closed) return
    this.#closed = true
    native().streamClose(this.handle, true)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the stream was closed')
  }
}
