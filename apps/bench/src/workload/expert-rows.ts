import { computeAlignedM, defaultAlignment } from '@moe-ep/deepgemm-permute'
import type { Received, Routing } from './routing.js'

/** Received rows and their places in the layout that grouped GEMMs read. */
export interface ExpertRows {
  readonly received: Received
  readonly numLocalExperts: number
  readonly expertNumTokens: Int32Array
  /** Rows of the layout, padding included. */
  readonly capacity: number
  /** [rows, K]: row of each local slot, -1 for others: by expert, then by row, then by slot. */
  readonly inverse: Int32Array
}

/** The places by counting, as the contract of permute says them. */
export function expertRowsOf(routing: Routing, rank: number): ExpertRows {
  const { topk } = routing.options
  const { begin, end } = routing.placement.rangeOf(rank)
  const received = routing.received(rank)
  // With fewer experts than ranks a rank may own none; the operation wants one, which then has no rows.
  const numLocalExperts = Math.max(1, end - begin)
  const expertNumTokens = new Int32Array(numLocalExperts)
  for (const id of received.topkIdx) if (id >= 0) expertNumTokens[id]!++
  const next = new Int32Array(numLocalExperts)
  for (let expert = 1; expert < numLocalExperts; expert++) {
    const rows = expertNumTokens[expert - 1]!
    next[expert] = next[expert - 1]! + Math.ceil(rows / defaultAlignment) * defaultAlignment
  }
  const inverse = received.topkIdx.map((id) => (id < 0 ? -1 : next[id]!++))
  const capacity = computeAlignedM({ numTokens: received.rows, topk, numLocalExperts, expertNumTokens })
  return { received, numLocalExperts, expertNumTokens, capacity, inverse }
}
