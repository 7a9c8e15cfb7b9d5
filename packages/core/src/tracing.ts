import { channel } from 'node:diagnostics_channel'
import type { Event } from './event.js'
import type { Stream } from './stream.js'

/** Message of the diagnostics channel `moe-ep:operation`, published when an operation was enqueued. */
export interface OperationTrace {
  /** Such as `layout.getDispatchLayout`. */
  readonly name: string
  readonly stream: Stream
  /** Completed when the operation began and ended on its stream: `completedAtUs` of both is its span. */
  readonly begin: Event
  readonly end: Event
  /** Bytes that the operation reads and writes, undefined where it does not say. Ask when `end` is complete. */
  readonly bytes: () => number | undefined
}

/** Bytes that an operation moves: a number, or a function where only its result tells. */
export type TracedBytes = number | undefined | (() => number | undefined)

const operations = channel('moe-ep:operation')

/** Whether what is enqueued now is told to somebody. What a plan keeps is not: it has no events. */
function isTold(stream: Stream): boolean {
  return operations.hasSubscribers && (stream.capturing || !stream.recording)
}

/**
 * Enqueues an operation, and tells listeners of the channel `moe-ep:operation` about it. Free when nobody listens.
 * @internal
 */
export function traceOperation<Result>(
  name: string,
  stream: Stream,
  bytes: TracedBytes,
  enqueue: () => Result,
): Result {
  if (!isTold(stream)) return enqueue()
  const begin = stream.record()
  const result = enqueue()
  publish(name, stream, begin, bytes)
  return result
}

/**
 * The same for work that the host does between two points of a stream. Call it when the work begins, and what it returns when the
 * work has ended.
 * @internal
 */
export function traceHostWork(name: string, stream: Stream, bytes: TracedBytes): () => void {
  if (!isTold(stream)) return () => {}
  const begin = stream.record()
  return () => publish(name, stream, begin, bytes)
}

function publish(name: string, stream: Stream, begin: Event, bytes: TracedBytes): void {
  const end = stream.record()
  const trace: OperationTrace = { name, stream, begin, end, bytes: typeof bytes === 'function' ? bytes : () => bytes }
  operations.publish(trace)
}
