import type { Event, Stream } from '@moe-ep/core'
import type { Lease } from '@moe-ep/transport'

/** The result of `body`; when it fails, the slot is free again in stream order. */
export async function releasedOnFailure<Result>(
  { lease, stream }: { readonly lease: Lease; readonly stream: Stream },
  body: () => Promise<Result>,
): Promise<Result> {
  try {
    return await body()
  } catch (error) {
    lease.release(stream.closed ? undefined : stream.record())
    throw error
  }
}

/** A dispatch that this rank cannot make: why, the slot that it would have had, and when the others are told. */
export interface Refused {
  readonly error: unknown
  readonly lease: Lease | undefined
  readonly told: Event | undefined
}

/**
 * Rejects with the error, but not before the others are told: they, too, hold the slot until then. Whoever goes on at once would
 * take another slot than they.
 */
export async function rejected({ error, lease, told }: Refused): Promise<never> {
  // A meeting that failed is heard of from the stream and from the buffer: the call has its own error.
  await told?.synchronize().catch(() => {})
  lease?.release(told)
  throw error
}

/** Waits for the counts. On failure the stream's own record of it is taken too: the caller hears of it here, once. */
export async function settled(counted: Event, stream: Stream): Promise<void> {
  try {
    await counted.synchronize()
  } catch (error) {
    await stream.synchronize().catch(() => {})
    throw error
  }
}
