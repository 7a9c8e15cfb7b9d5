import type { Stream } from '@moe-ep/core'

/** Times of one call. */
export interface Reading {
  /** From the moment that the stream was free for the work (on the cpu: those of all ranks) to its end, on the stream. */
  readonly streamUs: number
  /** JavaScript time of the call that enqueued the work. */
  readonly hostUs: number
}

/** Times what is enqueued on its stream, apart from the time that enqueuing takes. */
export interface Stopwatch {
  readonly stream: Stream
  /**
   * `enqueue` puts its work on {@link stream} before it first awaits.
   * @param gateUs how long a cuda stream stands still while the work is enqueued; without a meaning on the cpu, which waits.
   */
  time(enqueue: () => unknown, gateUs?: number): Promise<Reading>
  close(): Promise<void>
}
