import { argumentError, requireInteger } from '@moe-ep/core'
import { maxTopk } from '@moe-ep/layout'
import { RegionLayout } from '@moe-ep/transport'
import { native } from './native.js'

/** Sizes that a buffer is built for. They never grow; all ranks pass the same. */
export interface LowLatencyBufferSizes {
  /** Most elements of a row, a multiple of 8. */
  readonly hidden: number
  /** Most tokens that a rank dispatches, at most 1024. */
  readonly maxTokensPerRank: number
  /** Most slots of a token. @default 32 */
  readonly maxTopk?: number
  /** Dispatches whose combine has not come yet. @default 2 */
  readonly maxInFlight?: number
  /**
   * `'rank'` sends a row once to each rank that has one of its experts. `'expert'` sends it for each expert, as the first low-latency
   * kernels of the field did: more bytes, and {@link maxTopk} times the room for rows; topkWeights then go to combine.
   * @default 'rank'
   */
  readonly protocol?: LowLatencyProtocol
  /**
   * Whether calls can leave ranks out. `'manual'`: those that `updateMaskBuffer` names. `'late'`: also those that have not come at a
   * deadline, from this call on; `queryMaskBuffer` tells which. A rank that was left out may go on any time without doing harm: results
   * of each rank have places of their own, so weights must come with the dispatch, or the layout be rank-major. For protocol 'rank' and
   * up to 64 ranks.
   * @default 'none'
   */
  readonly masks?: MaskPolicy
}

export type MaskPolicy = 'none' | 'manual' | 'late'

export type LowLatencyProtocol = 'rank' | 'expert'

/** Masks are words of 64 bits. */
const mostMaskedRanks = 64

/** Sizes with their defaults, and what they need of symmetric memory. */
export interface BufferLayout {
  readonly sizes: Required<LowLatencyBufferSizes>
  readonly byteLength: number
  readonly numSignals: number
  /** Fields of the native record, in its order. */
  readonly nativeFields: readonly number[]
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function layoutBuffer(options: LowLatencyBufferSizes, numRanks: number): BufferLayout {
  const { hidden, maxTokensPerRank, maxTopk: topk = maxTopk, maxInFlight = 2, protocol = 'rank' } = options
  const { masks = 'none' } = options
  const sizes = { hidden, maxTokensPerRank, maxTopk: topk, maxInFlight, protocol, masks }
  requireHidden('hidden', hidden, 8)
  requireInteger('maxTokensPerRank', maxTokensPerRank, 0, 1024)
  requireInteger('maxTopk', topk, 1, maxTopk)
  requireInteger('maxInFlight', maxInFlight, 1, 64)
  if (protocol !== 'rank' && protocol !== 'expert') throw argumentError('protocol', "'rank' or 'expert'", protocol)
  if (!['none', 'manual', 'late'].includes(masks)) throw argumentError('masks', "'none', 'manual' or 'late'", masks)
  if (masks !== 'none' && (protocol !== 'rank' || numRanks > mostMaskedRanks)) {
    const received = `protocol '${protocol}' and ${numRanks} ranks`
    throw argumentError('masks', `'none', or protocol 'rank' and at most ${mostMaskedRanks} ranks`, received)
  }
  const resultsPerToken = masks === 'none' ? topk : Math.max(topk, numRanks)
  const messageBytes = native().messageBytes(hidden)
  const messagesPerToken = protocol === 'rank' ? 1 : topk
  const tableBytes = numRanks * maxTokensPerRank * native().paddedTopk(topk) * 4
  const slot = new RegionLayout()
  const heads = slot.reserve(numRanks * native().headBytes)
  const ids = slot.reserve(tableBytes)
  const weights = slot.reserve(tableBytes)
  const messages = slot.reserve(numRanks * maxTokensPerRank * messagesPerToken * messageBytes)
  const results = slot.reserve(maxTokensPerRank * resultsPerToken * hidden * 2)
  const state = slot.reserve(native().stateBytes)
  // Slots begin on pages of their own.
  const slotBytes = Math.ceil(slot.byteLength / 4096) * 4096
  return {
    sizes,
    byteLength: slotBytes * maxInFlight,
    numSignals: maxInFlight * native().signalKinds * numRanks,
    nativeFields: [
      ...[maxInFlight, slotBytes, hidden, maxTokensPerRank, topk, messagesPerToken, messageBytes],
      ...[heads, ids, weights, messages, results, state].map(({ byteOffset }) => byteOffset),
      ...[resultsPerToken, masks === 'none' ? 0 : 1],
    ],
  }
}

/** @throws ERR_MOE_EP_ARGUMENT unless rows are whole numbers of 16 bytes: bf16 of 8 elements, fp8 of 16, fp4 of 32. */
export function requireHidden(argument: string, hidden: number, multiple: 8 | 16 | 32, most?: number): void {
  requireInteger(argument, hidden, multiple, most)
  if (hidden % multiple !== 0) throw argumentError(argument, `a multiple of ${multiple}`, hidden)
}
