import { IntranodeBuffer, type IntranodeBufferSizes } from '@moe-ep/intranode-ht'
import { LowLatencyBuffer, type LowLatencyBufferSizes } from '@moe-ep/low-latency'
import type { LayerOptions } from '../command/layer-options.js'
import type { ModelShape } from '../presets/model-preset.js'

/** Of a run: tokens are counted rank by rank. */
export type BufferNeed = Pick<LayerOptions, 'tokens' | 'overlap' | 'protocol'>

/** Most tokens that a rank sends at a time: those of its largest micro-batch. */
export function maxTokensAtATime({ tokens, overlap }: BufferNeed): number {
  return Math.ceil(Math.max(...tokens) / overlap)
}

/** Sizes of the high-throughput buffer of every rank. */
export function intranodeSizes({ hidden, topk, experts }: ModelShape, need: BufferNeed): IntranodeBufferSizes {
  const maxTokensPerRank = maxTokensAtATime(need)
  return { hidden, maxTokensPerRank, maxTopk: topk, maxExperts: experts, maxInFlight: slots(need) }
}

/** Sizes of the low-latency buffer of every rank. */
export function lowLatencySizes({ hidden, topk }: ModelShape, need: BufferNeed): LowLatencyBufferSizes {
  const { protocol = 'rank' } = need
  return { hidden, maxTokensPerRank: maxTokensAtATime(need), maxTopk: topk, maxInFlight: slots(need), protocol }
}

/** Bytes of a rank's buffer. */
export function bufferBytes(shape: ModelShape, options: BufferNeed & Pick<LayerOptions, 'mode'>): number {
  const ranks = options.tokens.length
  if (options.mode === 'll') return LowLatencyBuffer.sizeHint(lowLatencySizes(shape, options), ranks)
  return IntranodeBuffer.sizeHint(intranodeSizes(shape, options), ranks)
}

/** One for each micro-batch, and two at least, as buffers have by themselves. */
function slots({ overlap }: BufferNeed): number {
  return Math.max(2, overlap)
}
