import { argumentError, requireInteger } from '@moe-ep/core'
import { type Region, RegionLayout } from '@moe-ep/transport'
import { native } from './native.js'

/** Sizes that a buffer is built for. They never grow; all ranks pass the same. */
export interface IntranodeBufferSizes {
  /** Most elements of a row. */
  readonly hidden: number
  /** Most tokens that a rank dispatches. */
  readonly maxTokensPerRank: number
  /**
   * Rows that a rank can receive in one dispatch. Grouped dispatches have a row for each selection, and padding: see
   * {@link maxGroupedRows}.
   * @default maxTokensPerRank * ranks, which always suffices for plain dispatches
   */
  readonly capacity?: number
  /** Bytes of the widest element in dispatch or combine. @default 2 */
  readonly maxElementBytes?: number
  /** Most scales of a row. @default ceil(hidden / 128) */
  readonly maxScaleColumns?: number
  /** Most slots of a token. @default 32 */
  readonly maxTopk?: number
  /** Most experts of all ranks together. @default 1024 */
  readonly maxExperts?: number
  /** Most channels. @default 64 */
  readonly maxChannels?: number
  /** Dispatches whose rows can be alive at a time. @default 2 */
  readonly maxInFlight?: number
}

/** Sizes with their defaults, and where each slot's regions lie. */
export interface BufferLayout {
  readonly sizes: Required<IntranodeBufferSizes>
  readonly rows: Region
  readonly scales: Region
  readonly topkIdx: Region
  readonly topkWeights: Region
  /** Index of each row at its source; of grouped rows the local expert. */
  readonly sourceIndex: Region
  readonly columnScales: Region
  readonly slotBytes: number
  readonly byteLength: number
  readonly numSignals: number
  /** Fields of the native record, in its order. */
  readonly nativeFields: readonly number[]
}

/**
 * Where everything lies in the symmetric payload.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function layoutBuffer(options: IntranodeBufferSizes, numRanks: number): BufferLayout {
  const sizes = withDefaults(options, numRanks)
  const maxRowBytes = sizes.hidden * sizes.maxElementBytes
  const countsStride = align(native().messageHeadBytes + 4 * (numRanks + sizes.maxExperts + sizes.maxChannels), 128)
  const slot = new RegionLayout()
  const rows = slot.reserve(sizes.capacity * maxRowBytes)
  const scales = slot.reserve(sizes.capacity * sizes.maxScaleColumns * 4)
  const sourceIndex = slot.reserve(sizes.capacity * 4)
  const topkIdx = slot.reserve(sizes.capacity * sizes.maxTopk * 8)
  const topkWeights = slot.reserve(sizes.capacity * sizes.maxTopk * 4)
  // A rank may be one dispatch ahead of another that still reads the counts of the last: two messages take turns.
  const counts = slot.reserve(2 * numRanks * countsStride)
  const combineHead = slot.reserve(native().combineHeadBytes)
  // Scales of grouped rows, column by column: a column is padded to four rows.
  const columnScales = slot.reserve(align(sizes.capacity, 4) * sizes.maxScaleColumns * 4)
  // What kernels of a cuda device remember of the slot.
  const epochs = slot.reserve(native().slotEpochsBytes)
  // Of grouped rows, for runs of tokens: where selections are, and what has been done for each run by every rank.
  const maxRuns = Math.ceil(sizes.maxTokensPerRank / native().runTokens)
  const places = slot.reserve(maxRuns * native().placesBytes * sizes.maxTopk)
  const sent = slot.reserve(numRanks * maxRuns * 8)
  const reduced = slot.reserve(numRanks * maxRuns * 8)
  // Slots begin on pages of their own: two leases never share one.
  const slotBytes = align(slot.byteLength, 4096)
  return {
    ...{ sizes, rows, scales, topkIdx, topkWeights, sourceIndex, columnScales, slotBytes },
    byteLength: slotBytes * sizes.maxInFlight,
    numSignals: (sizes.maxInFlight * native().signalKinds + native().refusalSignals) * numRanks,
    nativeFields: [
      ...[sizes.maxInFlight, slotBytes, sizes.capacity, maxRowBytes, sizes.maxScaleColumns, sizes.maxTopk],
      ...[sizes.maxExperts, sizes.maxChannels, rows.byteOffset, scales.byteOffset, sourceIndex.byteOffset],
      ...[topkIdx.byteOffset, topkWeights.byteOffset, counts.byteOffset, countsStride],
      ...[combineHead.byteOffset, columnScales.byteOffset, epochs.byteOffset],
      ...[maxRuns, places.byteOffset, sent.byteOffset, reduced.byteOffset],
    ],
  }
}

function withDefaults(options: IntranodeBufferSizes, numRanks: number): Required<IntranodeBufferSizes> {
  requireInteger('hidden', options.hidden, 1)
  requireInteger('maxTokensPerRank', options.maxTokensPerRank, 0, 2 ** 31 - 1)
  // Row indices travel as i32, also where they add up to more than the capacity.
  requireInteger('maxTokensPerRank of all ranks', options.maxTokensPerRank * numRanks, 0, 2 ** 31 - 1)
  const sizes = {
    ...{
      capacity: options.maxTokensPerRank * numRanks,
      maxElementBytes: 2,
      maxScaleColumns: Math.ceil(options.hidden / 128),
    },
    ...{ maxTopk: 32, maxExperts: 1024, maxChannels: 64, maxInFlight: 2 },
    ...Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)),
  } as Required<IntranodeBufferSizes>
  requireInteger('capacity', sizes.capacity, 0, 2 ** 31 - 1)
  if (![1, 2, 4].includes(sizes.maxElementBytes))
    throw argumentError('maxElementBytes', '1, 2 or 4', sizes.maxElementBytes)
  requireInteger('maxScaleColumns', sizes.maxScaleColumns, 0)
  requireInteger('maxTopk', sizes.maxTopk, 1, 32)
  requireInteger('maxExperts', sizes.maxExperts, 1)
  requireInteger('maxChannels', sizes.maxChannels, 1)
  requireInteger('maxInFlight', sizes.maxInFlight, 1, 64)
  return sizes
}

function align(bytes: number, alignment: number): number {
  return Math.ceil(bytes / alignment) * alignment
}

/** Rows that a grouped dispatch can need at the worst: every selection of every token on one rank, and padding. */
export function maxGroupedRows(options: {
  readonly maxTokensPerRank: number
  readonly numRanks: number
  readonly numExperts: number
  readonly topk: number
  readonly expertAlignment: number
}): number {
  const { maxTokensPerRank, numRanks, numExperts, topk, expertAlignment } = options
  const localExperts = Math.ceil(numExperts / numRanks)
  return maxTokensPerRank * numRanks * topk + localExperts * (expertAlignment - 1)
}
