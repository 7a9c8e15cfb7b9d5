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
  /** Bytes that the operation must move (read and written), where it knows them when enqueued. */
  readonly bytes: number | undefined
}

const operations = channel('moe-ep:operation')

/**
 * Enqueues an operation, and tells listeners of the channel `moe-ep:operation` about it. Free when nobody listens.
 * @internal
 */
export function traceOperation<Result>(name: string, stream: Stream, bytes: number | undefined, enqueue: () => Result): Result {
  if (!operations.hasSubscribers) return enqueue()
  const begin = stream.record()
  const result = enqueue()
  const end = stream.record()
  operations.publish({ name, stream, begin, end, bytes } satisfies OperationTrace)
  return result
}
