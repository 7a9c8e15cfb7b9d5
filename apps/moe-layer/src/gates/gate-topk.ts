import { argumentError } from '@moe-ep/core'
import { type ExpertGroups, activeGroups, checkGate, type Gate, maxTopk } from './gate.js'
import { limitGroups } from './limit-groups.js'
import { selectLargest } from './select-largest.js'

/** Each token's experts and their weights. */
export interface TopkSelection {
  /** [T, topk]: expert ids in order of falling choice score; -1 where there is no expert. */
  readonly topkIdx: Int32Array
  /** [T, topk]; 0 where there is no expert. */
  readonly topkWeights: Float32Array
}

/** Narrows the experts that a token may choose, beside what its gate says. */
export interface Restriction {
  /** Bars experts from one token by setting their choice scores [E] to minus infinity. */
  bar(choice: Float32Array, token: number): void
  /** Whether the restriction takes the place of the gate's limit to groups. */
  readonly liftsGroups: boolean
}

/** What to choose from, and how. */
export interface GateTopkOptions {
  readonly gate: Gate
  /** [T, E]. Minus infinity bars an expert from a token. They are left as they are. */
  readonly logits: Float32Array
  /**
   * [E]: added to the scores for the choice, not for the weights (e_score_correction_bias). Only with sigmoid scoring.
   */
  readonly correctionBias?: Float32Array
  readonly numTokens: number
  readonly numExperts: number
  /** Experts for each token; at most as many as the gate's kept groups hold. */
  readonly topk: number
  readonly restriction?: Restriction
}

/**
 * The experts and weights that a gate gives to each token.
 *
 * - Choice scores: the logit (softmax) or f32(sigmoid(logit)) + bias, rounded to f32 (sigmoid). A restriction acts on
 *   them, then the limit to groups. The `topk` largest win; of equal ones the lower id. A token with fewer left gets -1
 *   in its last slots.
 * - Weights: softmax over the experts that neither a logit nor the restriction bars, or f32(sigmoid(logit)) without the
 *   bias; divided by the sum of the chosen ones where the gate renormalises (a sum of zero gives zeros); times the
 *   scaling factor. All in f64, rounded to f32 once.
 *
 * @throws ERR_MOE_EP_ARGUMENT when sizes do not fit, a logit is NaN or plus infinity, or a bias is not finite.
 */
export function gateTopk(options: GateTopkOptions): TopkSelection {
  checkOptions(options)
  const { gate, logits, correctionBias, numTokens, numExperts, topk, restriction } = options
  const groups = restriction?.liftsGroups === true ? undefined : activeGroups(gate, numExperts)
  const topkIdx = new Int32Array(numTokens * topk).fill(-1)
  const topkWeights = new Float32Array(numTokens * topk)
  const scores = new Float32Array(numExperts)
  const choice = new Float32Array(numExperts)
  for (let token = 0; token < numTokens; token++) {
    const row = logits.subarray(token * numExperts, (token + 1) * numExperts)
    if (gate.scoring === 'sigmoid') sigmoidScores(row, { scores, choice, correctionBias })
    else choice.set(row)
    restriction?.bar(choice, token)
    const weigh = gate.scoring === 'sigmoid' ? (id: number): number => scores[id]! : softmaxOf(choice)
    if (groups !== undefined) limit(choice, groups, correctionBias)
    const chosen = topkIdx.subarray(token * topk, (token + 1) * topk)
    const count = selectLargest(choice, chosen)
    const weights = Array.from(chosen.subarray(0, count), weigh)
    const sum = gate.renormalize ? weights.reduce((total, weight) => total + weight, 0) : 1
    for (let slot = 0; slot < count; slot++) {
      topkWeights[token * topk + slot] = sum === 0 ? 0 : (weights[slot]! / sum) * gate.scalingFactor
    }
  }
  return { topkIdx, topkWeights }
}

/** f32 scores, and the choice scores made of them; a barred expert stays barred. */
function sigmoidScores(
  row: Float32Array,
  out: { scores: Float32Array; choice: Float32Array; correctionBias: Float32Array | undefined },
): void {
  const { scores, choice, correctionBias } = out
  for (let id = 0; id < row.length; id++) {
    scores[id] = 1 / (1 + Math.exp(-row[id]!))
    choice[id] = row[id] === -Infinity ? -Infinity : scores[id]! + (correctionBias?.[id] ?? 0)
  }
}

/**
 * Probability of each expert among those that are allowed. The largest logit is taken off first, so that nothing
 * overflows.
 */
function softmaxOf(allowed: Float32Array): (id: number) => number {
  const logits = allowed.slice()
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity)
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), 0)
  return (id) => Math.exp(logits[id]! - largest) / sum
}

function limit(choice: Float32Array, groups: ExpertGroups, correctionBias: Float32Array | undefined): void {
  limitGroups(choice, { ...groups, speakers: correctionBias === undefined ? 1 : 2 })
}

function checkOptions({ gate, logits, correctionBias, numTokens, numExperts, topk }: GateTopkOptions): void {
  checkGate(gate)
  if (!Number.isSafeInteger(numTokens) || numTokens < 0)
    throw argumentError('numTokens', 'an integer from 0', numTokens)
  if (!Number.isSafeInteger(numExperts) || numExperts < 1)
    throw argumentError('numExperts', 'a positive integer', numExperts)
  const most = maxTopk(gate, numExperts)
  if (!Number.isInteger(topk) || topk < 1 || topk > most)
    throw argumentError('topk', `an integer from 1 to ${most}`, topk)
  if (logits.length !== numTokens * numExperts) {
    throw argumentError('logits', `${numTokens * numExperts} elements`, logits.length)
  }
  for (let i = 0; i < logits.length; i++) {
    if (!(logits[i]! < Infinity)) throw argumentError('logits', 'numbers below plus infinity', logits[i])
  }
  if (correctionBias === undefined) return
  if (gate.scoring !== 'sigmoid') throw argumentError('correctionBias', 'none with softmax scoring', correctionBias)
  if (correctionBias.length !== numExperts)
    throw argumentError('correctionBias', `${numExperts} elements`, correctionBias.length)
  for (const bias of correctionBias)
    if (!Number.isFinite(bias)) throw argumentError('correctionBias', 'finite numbers', bias)
}
