import type { GateTopkOptions } from '../../src/gates/gate-topk.js'

/**
 * One token's experts and weights, by sorting lists as the published definitions read. Shares no code with the gates.
 */
export function slowGate(options: GateTopkOptions, token: number): { ids: number[]; weights: number[] } {
  const { gate, correctionBias, numExperts, topk } = options
  const logits = Array.from(options.logits).slice(token * numExperts, (token + 1) * numExperts)
  const everybody = logits.map((_, id) => id)
  const bias = (id: number): number => correctionBias?.[id] ?? 0
  const score = logits.map((logit) => Math.fround(1 / (1 + Math.exp(-logit))))
  const choice = Float32Array.from(logits, (logit, id) => (gate.scoring === 'softmax' ? logit : score[id]! + bias(id)))
  for (const id of everybody) if (logits[id] === -Infinity) choice[id] = -Infinity
  options.restriction?.bar(choice, token)
  const allowed = everybody.filter((id) => choice[id]! > -Infinity)
  const candidates = options.restriction?.liftsGroups ? allowed : withinGroups(options, choice, allowed)
  const ids = byScore(candidates, choice).slice(0, topk)
  const among = gate.scoring === 'softmax' && gate.renormalize ? ids : allowed
  const largest = Math.max(...among.map((id) => logits[id]!))
  const probability = (id: number): number =>
    Math.exp(logits[id]! - largest) / sum(among.map((other) => Math.exp(logits[other]! - largest)))
  const raw = ids.map((id) => (gate.scoring === 'softmax' ? probability(id) : score[id]!))
  const divisor = gate.renormalize ? sum(raw) : 1
  return { ids, weights: raw.map((weight) => (weight === 0 ? 0 : (weight / divisor) * gate.scalingFactor)) }
}

function withinGroups(
  { gate, numExperts, correctionBias }: GateTopkOptions,
  choice: Float32Array,
  allowed: number[],
): number[] {
  const { groups } = gate
  if (groups === undefined || numExperts <= groups.count || numExperts % groups.count !== 0) return allowed
  const size = numExperts / groups.count
  const groupOf = (id: number): number => Math.floor(id / size)
  const members = Array.from({ length: groups.count }, (_, group) => allowed.filter((id) => groupOf(id) === group))
  const speaking = correctionBias === undefined ? 1 : 2
  const scores = members.map((ids) =>
    Math.fround(
      sum(
        byScore(ids, choice)
          .slice(0, speaking)
          .map((id) => choice[id]!),
      ),
    ),
  )
  const alive = members.flatMap((ids, group) => (ids.length > 0 ? [group] : []))
  const kept = byScore(alive, scores).slice(0, groups.kept)
  return allowed.filter((id) => kept.includes(groupOf(id)))
}

/** Largest first, the lower id first among equals. */
function byScore(ids: readonly number[], scores: ArrayLike<number>): number[] {
  return [...ids].sort((a, b) => (scores[a] === scores[b] ? a - b : scores[a]! < scores[b]! ? 1 : -1))
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
