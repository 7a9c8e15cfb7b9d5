import type { Stopwatch } from './stopwatch.js'

/** Something that is timed again and again. All ranks call it alike. */
export interface TimedCase {
  readonly name: string
  /** Sets of buffers that take turns; all are used before the first measured iteration, so that their pages are there. */
  readonly sets: number
  /** Work before an iteration that is not timed. */
  prepare?(iteration: number): Promise<void>
  /** Microseconds of one iteration on this rank. */
  time(iteration: number): Promise<number>
}

/** A case that is timed on the stream; `enqueue` is told whose turn it is. */
export function streamCase(options: {
  readonly name: string
  readonly stopwatch: Stopwatch
  readonly sets: number
  readonly enqueue: (set: number) => unknown
}): TimedCase {
  const { name, stopwatch, sets, enqueue } = options
  return { name, sets, time: async (iteration) => (await stopwatch.time(() => enqueue(iteration % sets))).streamUs }
}
