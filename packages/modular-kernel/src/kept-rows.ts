import type { Event, Stream } from '@moe-ep/core'
import type { PackedRows } from '@moe-ep/low-latency'

/** What decides the shapes of received rows, where their format never changes. */
export interface RowsShape {
  readonly hidden: number
  readonly numExperts: number
}

/** Rows of one micro-batch. */
interface Kept extends RowsShape {
  readonly rows: PackedRows
  /** The end of work that may still read them, where no combine has said so. */
  lastRead: Event | undefined
}

/**
 * Memory that each micro-batch's rows arrive in, kept from dispatch to dispatch while shapes stay: fresh pages in every call would cost
 * more than the rows that are written to them.
 */
export class KeptRows {
  readonly #kept = new Map<number, Kept>()

  /** Memory for a dispatch on `stream`, which is ordered after those that read it last; undefined where there is none of this shape. */
  take(microBatch: number, { hidden, numExperts }: RowsShape, stream: Stream): PackedRows | undefined {
    const kept = this.#kept.get(microBatch)
    if (kept?.hidden !== hidden || kept.numExperts !== numExperts) return undefined
    if (kept.lastRead !== undefined) stream.follow(kept.lastRead)
    kept.lastRead = undefined
    return kept.rows
  }

  keep(microBatch: number, shape: RowsShape, rows: PackedRows): void {
    this.#kept.set(microBatch, { ...shape, rows, lastRead: undefined })
  }

  /** Says who may still read rows that no combine will answer. */
  readUntil(microBatch: number, event: Event): void {
    const kept = this.#kept.get(microBatch)
    if (kept !== undefined) kept.lastRead = event
  }
}
