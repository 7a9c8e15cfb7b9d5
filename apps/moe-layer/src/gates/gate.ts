import { argumentError } from '@moe-ep/core'

/** Blocks of neighbouring experts, of which a token may use only the best. */
export interface ExpertGroups {
  /** Groups that the experts are split into (n_group). */
  readonly count: number
  /** Groups that a token may choose from (topk_group). */
  readonly kept: number
}

/** How a model turns a token's logits into experts and weights. Plain data, so that it can travel as JSON. */
export interface Gate {
  /** What makes an expert's score of its logit: softmax over all experts, or a sigmoid of its own. */
  readonly scoring: 'softmax' | 'sigmoid'
  /** Without effect where the experts are not more than the groups, or no multiple of them. */
  readonly groups?: ExpertGroups
  /** Whether the chosen weights are divided by their sum (norm_topk_prob). */
  readonly renormalize: boolean
  /** Every weight is multiplied by it at the end (routed_scaling_factor). */
  readonly scalingFactor: number
}

/**
 * Softmax over all experts, renormalised over the chosen ones. That equals a softmax over the chosen logits alone, so
 * it is Qwen3's gate and Mixtral's.
 */
export const softmaxGate: Gate = { scoring: 'softmax', renormalize: true, scalingFactor: 1 }

/**
 * A sigmoid for each expert, renormalised and scaled; DeepSeek-V3's gate, and with one group Kimi-K2's and GLM-4.5's.
 */
export function sigmoidGate(groups: ExpertGroups, scalingFactor: number): Gate {
  return { scoring: 'sigmoid', groups, renormalize: true, scalingFactor }
}

/** The groups that limit a choice among so many experts; undefined where all may be chosen. */
export function activeGroups({ groups }: Gate, numExperts: number): ExpertGroups | undefined {
  if (groups === undefined || groups.kept >= groups.count) return undefined
  return numExperts > groups.count && numExperts % groups.count === 0 ? groups : undefined
}

/** Most experts that one token can have: those of the kept groups. */
export function maxTopk(gate: Gate, numExperts: number): number {
  const groups = activeGroups(gate, numExperts)
  return groups === undefined ? numExperts : (numExperts / groups.count) * groups.kept
}

/** Throws ERR_MOE_EP_ARGUMENT unless every number of the gate makes sense. */
export function checkGate({ groups, scalingFactor }: Gate): void {
  for (const [name, value] of Object.entries({ count: 1, kept: 1, ...groups })) {
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(`groups.${name}`, 'a positive integer', value)
  }
  if (!Number.isFinite(scalingFactor)) throw argumentError('scalingFactor', 'a finite number', scalingFactor)
}
