import { argumentError } from '@moe-ep/core'

/** How many experts are spread over how many ranks. */
export interface Placement {
  readonly experts: number
  readonly ranks: number
}

/** A half-open range of expert ids. */
export interface ExpertRange {
  readonly begin: number
  readonly end: number
}

/**
 * The experts that a rank owns: linear placement in which the first `experts mod ranks` ranks own one more. With fewer
 * experts than ranks the last ranks own none (begin equals end).
 *
 * @throws ERR_MOE_EP_ARGUMENT unless experts and ranks are positive integers and rank is below ranks.
 */
export function expertRangeOfRank({ experts, ranks, rank }: Placement & { readonly rank: number }): ExpertRange {
  checkPlacement({ experts, ranks })
  if (!Number.isInteger(rank) || rank < 0 || rank >= ranks) throw argumentError('rank', `0 to ${ranks - 1}`, rank)
  const each = Math.floor(experts / ranks)
  const larger = experts % ranks
  const begin = rank * each + Math.min(rank, larger)
  return { begin, end: begin + each + (rank < larger ? 1 : 0) }
}

/**
 * The rank that owns an expert.
 * @throws ERR_MOE_EP_ARGUMENT unless experts and ranks are positive integers and expert is below experts.
 */
export function rankOfExpert({ experts, ranks, expert }: Placement & { readonly expert: number }): number {
  checkPlacement({ experts, ranks })
  if (!Number.isInteger(expert) || expert < 0 || expert >= experts) {
    throw argumentError('expert', `0 to ${experts - 1}`, expert)
  }
  const each = Math.floor(experts / ranks)
  const larger = experts % ranks
  const inLarger = larger * (each + 1)
  return expert < inLarger ? Math.floor(expert / (each + 1)) : larger + Math.floor((expert - inLarger) / each)
}

function checkPlacement(placement: Placement): void {
  for (const name of ['experts', 'ranks'] as const) {
    const value = placement[name]
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(name, 'a positive integer', value)
  }
}
