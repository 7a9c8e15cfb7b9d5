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
  const starts = new Int32Array(numLocalExperts)
  for (let expert = 1; expert < numLocalExperts; expert++) {
    const rows = expertNumTokens[expert - 1]!
    starts[expert] = starts[expert - 1]! + Math.ceil(rows / defaultAlignment) * defaultAlignment
  }
  const inverse = placesFrom(received.topkIdx, starts)
  const capacity = computeAlignedM({ numTokens: received.rows, topk, numLocalExperts, expertNumTokens })
  return { received, numLocalExperts, expertNumTokens, capacity, inverse }
}

/** The place of each slot when the rows of an expert follow one another from its start; -1 for slots without a local expert. */
export function placesFrom(ids: Int32Array, starts: Int32Array): Int32Array {
  const next = starts.slice()
  return ids.map((id) => (id < 0 ? -1 : next[id]!++))
}

/** The masked layout: every expert has room for `maxTokens` rows, as many as the fullest one needs in steps of 16. */
export function maskedPlacesOf(rows: ExpertRows): { readonly maxTokens: number; readonly inverse: Int32Array } {
  const { received, expertNumTokens } = rows
  const maxTokens = Math.max(16, Math.ceil(Math.max(...expertNumTokens) / 16) * 16)
  const starts = expertNumTokens.map((_, expert) => expert * maxTokens)
  return { maxTokens, inverse: placesFrom(received.topkIdx, starts) }
}

/** All slots sorted by expert without padding; slots without a local expert follow behind, in order. */
export function sortedPlacesOf(rows: ExpertRows): { readonly offsets: number[]; readonly inverse: Int32Array } {
  const { received, expertNumTokens } = rows
  const offsets = [0]
  for (const count of expertNumTokens) offsets.push(offsets.at(-1)! + count)
  const inverse = placesFrom(received.topkIdx, Int32Array.from(offsets))
  let behind = received.slots
  return { offsets, inverse: inverse.map((place) => (place < 0 ? behind++ : place)) }
}
