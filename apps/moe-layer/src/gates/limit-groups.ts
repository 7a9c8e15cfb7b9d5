import type { ExpertGroups } from './gate.js'
import { selectLargest } from './select-largest.js'

/** How many of a group's best experts speak for it. */
export interface GroupLimit extends ExpertGroups {
  /** 2 where a correction bias is in use, else 1. */
  readonly speakers: 1 | 2
}

/**
 * Bars the experts of all groups but the best, by setting their choice scores to minus infinity. A group's score is the
 * sum of its two largest choice scores (or its largest, as `speakers` says). A group where fewer are allowed is judged
 * by those, so that barred experts do not hide an allowed one; one where none is allowed is never kept. Of equal groups
 * the first wins.
 */
export function limitGroups(choice: Float32Array, { count, kept, speakers }: GroupLimit): void {
  const size = choice.length / count
  const groupOf = (group: number): Float32Array => choice.subarray(group * size, (group + 1) * size)
  const best = new Int32Array(speakers)
  const groupScores = Float32Array.from({ length: count }, (_, group) => {
    const members = groupOf(group)
    const allowed = selectLargest(members, best)
    if (allowed === 0) return -Infinity
    return allowed === 1 ? members[best[0]!]! : members[best[0]!]! + members[best[1]!]!
  })
  const chosen = new Int32Array(kept)
  const keptGroups = new Set(chosen.subarray(0, selectLargest(groupScores, chosen)))
  for (let group = 0; group < count; group++) if (!keptGroups.has(group)) groupOf(group).fill(-Infinity)
}
