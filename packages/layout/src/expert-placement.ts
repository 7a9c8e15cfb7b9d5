import { requireInteger } from '@moe-ep/core'

/** Which rank owns which expert. */
export interface ExpertPlacement {
  readonly numExperts: number
  readonly numRanks: number
  /** Rank that owns a global expert id. */
  rankOf(expert: number): number
  /** Global ids [begin, end) that a rank owns; empty when there are fewer experts than ranks. */
  rangeOf(rank: number): { readonly begin: number; readonly end: number }
  /** Experts that a rank owns. */
  countOf(rank: number): number
}

/**
 * Linear placement: every rank owns a contiguous block of experts, and the first (numExperts mod numRanks) ranks own one more.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function linearPlacement(numExperts: number, numRanks: number): ExpertPlacement {
  requireInteger('numExperts', numExperts, 1)
  requireInteger('numRanks', numRanks, 1)
  const small = Math.floor(numExperts / numRanks)
  const largeRanks = numExperts % numRanks
  const beginOf = (rank: number): number => rank * small + Math.min(rank, largeRanks)
  return {
    numExperts,
    numRanks,
    rankOf(expert) {
      requireInteger('expert', expert, 0, numExperts - 1)
      const inLarge = largeRanks * (small + 1)
      return expert < inLarge ? Math.floor(expert / (small + 1)) : largeRanks + Math.floor((expert - inLarge) / small)
    },
    rangeOf(rank) {
      requireInteger('rank', rank, 0, numRanks - 1)
      return { begin: beginOf(rank), end: beginOf(rank + 1) }
    },
    countOf(rank) {
      requireInteger('rank', rank, 0, numRanks - 1)
      return beginOf(rank + 1) - beginOf(rank)
    },
  }
}

/**
 * Table from global expert id to the local id on `rank`, -1 for foreign experts: the expert map that permute operations take.
 * @returns i32 values, one for each of the `numExperts` experts.
 */
export function expertMapOf(placement: ExpertPlacement, rank: number): Int32Array {
  const { begin, end } = placement.rangeOf(rank)
  return Int32Array.from({ length: placement.numExperts }, (_, expert) =>
    expert >= begin && expert < end ? expert - begin : -1,
  )
}
