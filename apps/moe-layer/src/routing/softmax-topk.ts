import { argumentError } from '@moe-ep/core'

/** Each token's experts and their weights. */
export interface TopkSelection {
  /** [T, topk]: expert ids in order of falling weight; -1 where there is no expert. */
  readonly topkIdx: Int32Array
  /** [T, topk]; 0 where there is no expert. */
  readonly topkWeights: Float32Array
}

/** What to choose from. */
export interface SoftmaxTopkOptions {
  /** [T, E] scores. Minus infinity bars an expert from a token. */
  readonly logits: Float32Array
  readonly numTokens: number
  readonly numExperts: number
  /** Experts for each token, at most `numExperts`. */
  readonly topk: number
  /** Whether the chosen weights are divided by their sum, so that each token's weights add up to 1. */
  readonly renormalize: boolean
}

/**
 * The `topk` experts with the largest softmax probability of each token, those probabilities as weights. Of equal
 * logits the lower id wins. A token that has fewer than `topk` experts to choose from gets -1 in its last slots.
 *
 * @throws ERR_MOE_EP_ARGUMENT when sizes do not fit or a logit is NaN or plus infinity.
 */
export function softmaxTopk({ logits, numTokens, numExperts, topk, renormalize }: SoftmaxTopkOptions): TopkSelection {
  checkSizes({ logits, numTokens, numExperts, topk })
  const topkIdx = new Int32Array(numTokens * topk).fill(-1)
  const topkWeights = new Float32Array(numTokens * topk)
  for (let token = 0; token < numTokens; token++) {
    const row = logits.subarray(token * numExperts, (token + 1) * numExperts)
    const chosen = topkIdx.subarray(token * topk, (token + 1) * topk)
    const count = selectLargest(row, chosen)
    if (count === 0) continue
    const largest = row[chosen[0]!]!
    const divisor = sumOfExponentials(row, renormalize ? chosen.subarray(0, count) : undefined, largest)
    for (let slot = 0; slot < count; slot++) {
      topkWeights[token * topk + slot] = Math.exp(row[chosen[slot]!]! - largest) / divisor
    }
  }
  return { topkIdx, topkWeights }
}

/**
 * Puts the ids of the largest values of `row` into `chosen`, largest first, and says how many there are. Values of
 * minus infinity are never chosen.
 */
export function selectLargest(row: Float32Array, chosen: Int32Array): number {
  let count = 0
  for (let id = 0; id < row.length; id++) {
    const value = row[id]!
    if (!(value < Infinity)) throw argumentError('logits', 'numbers below plus infinity', value)
    if (value === -Infinity) continue
    if (count === chosen.length && value <= row[chosen[count - 1]!]!) continue
    // Only a strictly larger value moves forward, so the lower id stays ahead of its equals.
    let slot = count < chosen.length ? count++ : count - 1
    for (; slot > 0 && value > row[chosen[slot - 1]!]!; slot--) chosen[slot] = chosen[slot - 1]!
    chosen[slot] = id
  }
  return count
}

/** Sum of exp(value - largest), over the values at `ids` or over all of them. */
function sumOfExponentials(row: Float32Array, ids: Int32Array | undefined, largest: number): number {
  let sum = 0
  if (ids === undefined) for (const value of row) sum += Math.exp(value - largest)
  else for (const id of ids) sum += Math.exp(row[id]! - largest)
  return sum
}

function checkSizes({ logits, numTokens, numExperts, topk }: Omit<SoftmaxTopkOptions, 'renormalize'>): void {
  if (!Number.isSafeInteger(numTokens) || numTokens < 0)
    throw argumentError('numTokens', 'an integer from 0', numTokens)
  if (!Number.isSafeInteger(numExperts) || numExperts < 1) {
    throw argumentError('numExperts', 'a positive integer', numExperts)
  }
  if (!Number.isInteger(topk) || topk < 1 || topk > numExperts) {
    throw argumentError('topk', `an integer from 1 to the number of experts (${numExperts})`, topk)
  }
  if (logits.length !== numTokens * numExperts) {
    throw argumentError('logits', `${numTokens * numExperts} elements`, logits.length)
  }
}
