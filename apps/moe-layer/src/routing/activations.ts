import { argumentError, bf16ToF32Array } from '@moe-ep/core'
import { fillFromTable, normalTableBf16 } from '../random/normal-values.js'
import { randomStream } from '../random/random-stream.js'

/** Which activations to make. */
export interface ActivationsOptions {
  readonly seed: number
  /** Every rank gets rows of its own. */
  readonly rank: number
  readonly numTokens: number
  readonly hidden: number
}

/**
 * Made-up token rows [T, K] for one rank: normal values of deviation 1 that bf16 holds exactly. The same seed, rank
 * and hidden give the same rows; more tokens add rows behind them.
 *
 * @throws ERR_MOE_EP_ARGUMENT when a number is not an integer or a size is negative (hidden: below 1).
 */
export function makeActivations({ seed, rank, numTokens, hidden }: ActivationsOptions): Float32Array {
  if (!Number.isSafeInteger(seed)) throw argumentError('seed', 'an integer', seed)
  if (!Number.isSafeInteger(hidden) || hidden < 1) throw argumentError('hidden', 'a positive integer', hidden)
  for (const [name, value] of Object.entries({ rank, numTokens })) {
    if (!Number.isSafeInteger(value) || value < 0) throw argumentError(name, 'an integer from 0', value)
  }
  const bits = new Uint16Array(numTokens * hidden)
  fillFromTable(bits, {
    table: normalTableBf16(1),
    stream: randomStream(seed, `activations of rank ${rank}`),
    first: 0,
  })
  return bf16ToF32Array(bits)
}
