/**
 * How many (token, slot) pairs chose each expert.
 * @param topkIdx Expert ids of all slots; -1 means no expert.
 */
export function countSelections(topkIdx: Int32Array, numExperts: number): number[] {
  const counts = Array.from({ length: numExperts }, () => 0)
  for (const id of topkIdx) if (id >= 0) counts[id]!++
  return counts
}
