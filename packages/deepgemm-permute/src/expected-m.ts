import { requireInteger } from '@moe-ep/core'
import { roundUp } from './rounding.js'

export interface ExpectedMOptions {
  /** Tokens of all ranks together, where known. */
  readonly numTokens?: number
  /** Slots of a token K. */
  readonly topk: number
  /** Experts of all ranks together. */
  readonly numExperts: number
  /** Rows that every expert has in the masked layout. */
  readonly maxTokens: number
}

/**
 * Rows that an expert of the masked layout may be expected to have, the hint by which a masked grouped GEMM chooses its tiles:
 * the whole part of tokens * K / experts, rounded up to 16, at least 16, at most `maxTokens`; `maxTokens` when nobody knows the
 * tokens.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function expectedM({ numTokens, topk, numExperts, maxTokens }: ExpectedMOptions): number {
  requireInteger('topk', topk, 0)
  requireInteger('numExperts', numExperts, 1)
  requireInteger('maxTokens', maxTokens, 1)
  if (numTokens === undefined) return maxTokens
  requireInteger('numTokens', numTokens, 0)
  const even = Math.floor((numTokens * topk) / numExperts)
  return Math.min(maxTokens, Math.max(16, roundUp(even, 16)))
}
