import { requireInteger } from '@moe-ep/core'
import { expertNumTokensRoundUpAndSum, requireHostCounts, roundUp } from './rounding.js'

/** Rows that a segment of the contiguous layout starts on a multiple of, when nothing else is asked for: DeepGEMM's on SM90. */
export const defaultAlignment = 128

export interface AlignedMOptions {
  /** Tokens M. */
  readonly numTokens: number
  /** Slots of a token K. */
  readonly topk: number
  /** Experts of this rank. */
  readonly numLocalExperts: number
  /** Every expert's rows start on a multiple of it; any integer from 1. @default 128 */
  readonly alignment?: number
  /** Rows of each local expert, where the host knows them: the result is then exact. */
  readonly expertNumTokens?: Int32Array
}

/**
 * Rows of the contiguous layout, padding included: always a multiple of `alignment`, and never less than what `permute` needs.
 *
 * With host counts it is exact, the sum of the counts rounded up one by one (0 when all are 0). Without, it is the bound
 * M * K + numLocalExperts * (alignment - 1), rounded up.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function computeAlignedM(options: AlignedMOptions): number {
  const { numTokens, topk, numLocalExperts, alignment = defaultAlignment, expertNumTokens } = options
  requireInteger('numTokens', numTokens, 0)
  requireInteger('topk', topk, 0)
  requireInteger('numLocalExperts', numLocalExperts, 1)
  requireInteger('alignment', alignment, 1)
  if (expertNumTokens === undefined) return roundUp(numTokens * topk + numLocalExperts * (alignment - 1), alignment)
  requireHostCounts('expertNumTokens', expertNumTokens, numLocalExperts)
  return expertNumTokensRoundUpAndSum(expertNumTokens, alignment)
}
