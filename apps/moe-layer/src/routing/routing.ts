import { MoeEpError } from '@moe-ep/core'
import { type Gate, maxTopk, softmaxGate } from '../gates/gate.js'
import { gateTopk, type Restriction, type TopkSelection } from '../gates/gate-topk.js'
import { selectLargest } from '../gates/select-largest.js'
import { type ExpertRange, expertRangeOfRank, rankOfExpert } from './placement.js'
import type { RoutingKind } from './routing-kind.js'

/** What a routing is made for. */
export interface RoutingOptions {
  readonly kind: RoutingKind
  readonly ranks: number
  /** All routed experts, placed as {@link expertRangeOfRank} says. */
  readonly experts: number
  readonly topk: number
  /** The rank whose tokens are routed. */
  readonly rank: number
  /** @default {@link softmaxGate} */
  readonly gate?: Gate
  /** [E]: the gate's correction bias, if it has one. */
  readonly correctionBias?: Float32Array
}

/** Chooses experts for tokens. */
export interface Routing {
  /** The choice for `numTokens` tokens with these logits [T, E]. The logits are left as they are. */
  route(logits: Float32Array, numTokens: number): TopkSelection
}

/**
 * A routing of the given kind. All kinds rank experts by the gate's choice scores and differ in whom they allow:
 *
 * - `uniform`: everybody.
 * - `hot`: the experts of one rank. Where top-k is larger than their number the last slots are -1.
 * - `empty`: the experts of all ranks but one; -1 likewise.
 * - `skewed`: half of a token's slots go to rank 0 and the other half to the one other rank whose best expert scores
 *   highest. An odd slot goes here and there in turns. So rank 0 receives half of all dispatched rows (one for each
 *   token and rank) and half of all expert rows (one for each slot). A half that is larger than the rank's number of
 *   experts leaves -1. A single rank gets everything.
 *
 * Where the gate limits tokens to groups of experts, `hot` and `empty` keep to it among the experts that they allow
 * (which can leave -1); `skewed` cannot, for its halves would not be halves: it replaces the limit.
 *
 * The choice depends on the logits, the bias, the rank and the token's index alone.
 *
 * @throws ERR_MOE_EP_CONFIG when the kind allows no expert at all or top-k is not from 1 to the number of experts.
 */
export function createRouting(options: RoutingOptions): Routing {
  const { experts: numExperts, topk, gate = softmaxGate, correctionBias } = options
  const most = maxTopk(gate, numExperts)
  if (!Number.isInteger(topk) || topk < 1 || topk > most) {
    throw new MoeEpError(
      'ERR_MOE_EP_CONFIG',
      `topk: expected 1 to ${most} (the experts that a token may choose from), not ${topk}`,
    )
  }
  const restriction = restrictionOf(options)
  return {
    route(logits, numTokens) {
      return gateTopk({
        ...{ gate, logits, numTokens, numExperts, topk },
        ...(correctionBias !== undefined && { correctionBias }),
        ...(restriction !== undefined && { restriction }),
      })
    },
  }
}

function restrictionOf(options: RoutingOptions): Restriction | undefined {
  const { kind } = options
  if (kind.name === 'uniform') return undefined
  if (kind.name === 'skewed') return skewed(options)
  const range = expertRangeOfRank({ ...options, rank: kind.rank })
  const owned = range.end - range.begin
  if (kind.name === 'hot') {
    if (owned === 0) throw nobodyLeft(options, `rank ${kind.rank} owns none of the ${options.experts} experts`)
    return { liftsGroups: false, bar: (scores) => keepOnly(scores, range) }
  }
  if (owned === options.experts) throw nobodyLeft(options, `rank ${kind.rank} owns all experts`)
  return { liftsGroups: false, bar: (scores) => void scores.fill(-Infinity, range.begin, range.end) }
}

function skewed(options: RoutingOptions): Restriction | undefined {
  const { ranks, experts, topk, rank } = options
  const first = expertRangeOfRank({ experts, ranks, rank: 0 })
  if (ranks === 1) return undefined
  if (first.end === experts) throw nobodyLeft(options, 'rank 0 owns all experts')
  const chosen = new Int32Array(topk)
  const bar = (scores: Float32Array, token: number): void => {
    // The larger half takes turns over tokens and over ranks, so that single tokens on many ranks balance too.
    const half = (topk + ((token + rank) % 2 === 0 ? 1 : 0)) >> 1
    const other = expertRangeOfRank({ experts, ranks, rank: bestOtherRank(scores, options) })
    const kept = [...bestOf(scores, first, chosen.subarray(0, half)), ...bestOf(scores, other, chosen.subarray(half))]
    const values = kept.map((id) => scores[id]!)
    scores.fill(-Infinity)
    for (const [i, id] of kept.entries()) scores[id] = values[i]!
  }
  return { liftsGroups: true, bar }
}

/** The rank beside rank 0 whose best expert scores highest. */
function bestOtherRank(scores: Float32Array, { experts, ranks }: RoutingOptions): number {
  const { end } = expertRangeOfRank({ experts, ranks, rank: 0 })
  const best = new Int32Array(1)
  selectLargest(scores.subarray(end), best)
  return rankOfExpert({ experts, ranks, expert: end + best[0]! })
}

/** Ids of the best experts of a range, as many as `chosen` holds and the range has. */
function bestOf(scores: Float32Array, { begin, end }: ExpertRange, chosen: Int32Array): number[] {
  const count = chosen.length === 0 ? 0 : selectLargest(scores.subarray(begin, end), chosen)
  return Array.from(chosen.subarray(0, count), (id) => begin + id)
}

function keepOnly(scores: Float32Array, { begin, end }: ExpertRange): void {
  scores.fill(-Infinity, 0, begin).fill(-Infinity, end)
}

function nobodyLeft({ kind }: RoutingOptions, reason: string): MoeEpError {
  const name = 'rank' in kind ? `${kind.name}:${kind.rank}` : kind.name
  return new MoeEpError('ERR_MOE_EP_CONFIG', `routing ${name} leaves no expert to choose: ${reason}`)
}
