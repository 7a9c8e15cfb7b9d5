import { argumentError } from '@moe-ep/core'

/** Rows and gate. */
export interface GateLogitsOptions {
  /** Rows [T, K]. */
  readonly x: Float32Array
  /** Gate weight [E, K]. */
  readonly gate: Float32Array
  /** K. */
  readonly hidden: number
}

/**
 * The gate's scores [T, E]: `x . gate^T`.
 * @throws ERR_MOE_EP_ARGUMENT when `hidden` is not a positive integer or does not divide both lengths.
 */
export function gateLogits({ x, gate, hidden }: GateLogitsOptions): Float32Array {
  if (!Number.isSafeInteger(hidden) || hidden < 1) throw argumentError('hidden', 'a positive integer', hidden)
  for (const [name, { length }] of Object.entries({ x, gate })) {
    if (length % hidden !== 0) throw argumentError(name, `a multiple of ${hidden} elements`, length)
  }
  const numTokens = x.length / hidden
  const numExperts = gate.length / hidden
  const logits = new Float32Array(numTokens * numExperts)
  for (let token = 0; token < numTokens; token++) {
    const row = x.subarray(token * hidden, (token + 1) * hidden)
    for (let expert = 0; expert < numExperts; expert++) {
      logits[token * numExperts + expert] = dot(row, gate, expert * hidden)
    }
  }
  return logits
}

/** Four sums side by side: one sum alone would wait for every addition before the next. */
function dot(row: Float32Array, matrix: Float32Array, offset: number): number {
  let sum0 = 0
  let sum1 = 0
  let sum2 = 0
  let sum3 = 0
  let i = 0
  for (; i + 3 < row.length; i += 4) {
    sum0 += row[i]! * matrix[offset + i]!
    sum1 += row[i + 1]! * matrix[offset + i + 1]!
    sum2 += row[i + 2]! * matrix[offset + i + 2]!
    sum3 += row[i + 3]! * matrix[offset + i + 3]!
  }
  for (; i < row.length; i++) sum0 += row[i]! * matrix[offset + i]!
  return sum0 + sum1 + (sum2 + sum3)
}
