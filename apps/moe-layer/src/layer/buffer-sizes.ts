import type { IntranodeBufferSizes } from '@moe-ep/intranode-ht'
import type { ModelShape } from '../presets/model-preset.js'

/** Sizes of the dispatch buffer of every rank, for tokens counted rank by rank. */
export function bufferSizes({ hidden, topk, experts }: ModelShape, tokens: readonly number[]): IntranodeBufferSizes {
  return { hidden, maxTokensPerRank: Math.max(...tokens), maxTopk: topk, maxExperts: experts }
}
