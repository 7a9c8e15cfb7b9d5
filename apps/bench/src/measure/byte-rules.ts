import { logFmt10RowBytes, logFmtGroupSize, mxGroupSize, nvfp4GroupSize } from '@moe-ep/quant'

/**
 * Bytes that an operation must move, whatever its algorithm: every input that is needed read once, every output written once.
 * Metadata that is a constant number of bytes a call is left out.
 */

const idBytes = 4
const weightBytes = 4

/** Bytes of f32 scales of one row. */
export function scaleBytesOf(hidden: number): number {
  return Math.ceil(hidden / 128) * 4
}

/** How rows of low-latency calls travel. */
export type LowLatencyFormat = 'bf16' | 'fp8' | 'mxfp8' | 'nvfp4' | 'logfmt10'

/** Bytes of one row with its scales or ranges. */
export function lowLatencyRowBytes(format: LowLatencyFormat, hidden: number): number {
  switch (format) {
    case 'bf16':
      return hidden * 2
    case 'fp8':
      return hidden + scaleBytesOf(hidden)
    case 'mxfp8':
      return hidden + Math.ceil(hidden / mxGroupSize)
    case 'nvfp4':
      return hidden / 2 + Math.ceil(hidden / nvfp4GroupSize)
    case 'logfmt10':
      return logFmt10RowBytes(hidden) + Math.ceil(hidden / logFmtGroupSize) * 4
  }
}

export const rules = {
  layout: 'ids read; isTokenInRank and both count tables written',
  rankPrefix: 'counts of all ranks read, their sums written',
  channelPrefix: 'isTokenInRank read, one count for each rank and channel written',
  quantize: 'bf16 rows read; quantised rows with scales written',
  quantizeDynamic: 'bf16 rows read twice, for no element can be written before all are known; fp8 rows written',
  quantizeBlock: 'bf16 weight read; fp8 weight and a scale for each block written',
  dequantize: 'quantised rows with scales read; bf16 rows written',
  dequantizeBlock: 'fp8 weight and a scale for each block read; bf16 weight written',
  siluMul: 'bf16 gates and ups read; bf16 rows of half the width written',
  siluMulQuantize: 'bf16 gates and ups read; fp8 rows of half the width with scales written',
  count: 'ids read; a count for each local expert written',
  permute:
    'received rows (with scales) and ids read once; one row (with scales) and id written for each local slot; inverse written',
  permuteMasked:
    'received rows (with scales) and ids read once; one row (with scales) written for each local slot; inverse written',
  moePermute:
    'received rows (with scales) and ids read once; one row (with scales) written for each local slot; inverse and ids of all slots written',
  moeUnpermute: 'one row read for each local slot; weights and inverse read; one row written for each received row',
  unpermute: 'one row read for each local slot; ids, weights, inverse read; one row written for each received row',
  dispatch:
    'each sent token read once; row, scales, source index, ids and weights written once for each destination rank',
  dispatchGrouped:
    'each sent token with its ids read once; row, scales and expert id written once for each selection; padding not counted',
  combineGrouped:
    'one row read for each selection; ids and weights read; one row written for each token; staging copies not counted',
  combine: 'one row read for each (token, rank) pair; one row written for each token; staging copies not counted',
  lowLatencyDispatch:
    'each sent token read once; row (with scales) written once for each destination rank, read there and written for each selection',
  lowLatencyCombine: 'for each selection a row read and written home, read there; one row written for each token',
  lowLatencyCombineWeighted:
    'a row read for each selection; one written home for each (token, rank) pair, read there; one row written for each token',
  put: 'source read, destination written',
} as const

export function layoutBytes(s: { tokens: number; topk: number; experts: number; ranks: number }): number {
  return s.tokens * s.topk * idBytes + s.tokens * s.ranks + (s.ranks + s.experts) * 4
}

/** Counts of each rank read, sums written. */
export function rankPrefixBytes({ ranks }: { ranks: number }): number {
  return 2 * ranks * ranks * 4
}

export function channelPrefixBytes(s: { tokens: number; ranks: number; channels: number }): number {
  return s.tokens * s.ranks + s.ranks * s.channels * 4
}

/** Rows in the shape that a rank received them: `slots` is the number of slots that name a local expert. */
export interface ReceivedRows {
  readonly rows: number
  readonly slots: number
  readonly topk: number
}

/** Bytes of a row where it is read and where it is written: packed scales are other bytes than their exponents. */
export interface MovedRow {
  readonly read: number
  readonly written: number
}

export function permuteBytes({ rows, slots, topk }: ReceivedRows, row: MovedRow): number {
  return rows * (row.read + 2 * topk * idBytes) + slots * (row.written + idBytes)
}

export function permuteMaskedBytes({ rows, slots, topk }: ReceivedRows, row: MovedRow): number {
  return rows * (row.read + 2 * topk * idBytes) + slots * row.written
}

/** Ids of all slots' rows are written, those of foreign slots included. */
export function moePermuteBytes({ rows, slots, topk }: ReceivedRows, row: MovedRow): number {
  return rows * (row.read + 3 * topk * idBytes) + slots * row.written
}

export function moeUnpermuteBytes({ rows, slots, topk }: ReceivedRows, rowBytes: number): number {
  return slots * rowBytes + rows * (topk * (idBytes + weightBytes) + rowBytes)
}

export function countBytes({ rows, topk }: { rows: number; topk: number }, experts: number): number {
  return (rows * topk + experts) * idBytes
}

export function unpermuteBytes({ rows, slots, topk }: ReceivedRows, rowBytes: number): number {
  return slots * rowBytes + rows * (topk * (2 * idBytes + weightBytes) + rowBytes)
}

/** Bytes of an operation between ranks, for one of them. */
export interface LinkBytes {
  /** Read and written. */
  readonly bytes: number
  /** What crosses to or from other ranks. */
  readonly wireBytes: number
  /** The same with what stays on this rank. */
  readonly logicalBytes: number
}

/** What one rank sends: `toRank[j]` of its tokens to rank j, `sentTokens` of them anywhere. */
export interface SentTokens {
  readonly rank: number
  readonly toRank: readonly number[]
  readonly sentTokens: number
}

/** Bytes that one dispatched row takes at its destination. `topk` is 0 with a cached plan: no ids or weights travel. */
export function dispatchedRowBytes(row: { payloadBytes: number; topk: number }): number {
  return row.payloadBytes + idBytes + row.topk * (idBytes + weightBytes)
}

export function dispatchBytes(sent: SentTokens, row: { payloadBytes: number; topk: number }): LinkBytes {
  const written = dispatchedRowBytes(row)
  const read = row.payloadBytes + row.topk * (idBytes + weightBytes)
  return { bytes: sent.sentTokens * read + total(sent) * written, ...links(sent, written) }
}

export function combineBytes(sent: SentTokens, { tokens, rowBytes }: { tokens: number; rowBytes: number }): LinkBytes {
  return { bytes: (total(sent) + tokens) * rowBytes, ...links(sent, rowBytes) }
}

/** Which of a low-latency call's phases is meant. */
export type Part = 'both' | 'send' | 'receive'

/** `selections`: rows of experts that this rank packs. What travels is counted with the phase that sends. */
export function lowLatencyDispatchBytes(
  sent: SentTokens,
  row: { inputBytes: number; rowBytes: number; selections: number },
  part: Part = 'both',
): LinkBytes {
  const { logicalBytes, wireBytes } = links(sent, row.rowBytes)
  const send = sent.sentTokens * row.inputBytes + logicalBytes
  const receive = 2 * row.selections * row.rowBytes
  return { bytes: { send, receive, both: send + receive }[part], logicalBytes, wireBytes }
}

/** `toRank` counts the rows that come home, of `sentBytes` each. */
export function lowLatencyCombineBytes(
  sent: SentTokens,
  row: { tokens: number; rowBytes: number; sentBytes: number; selections: number },
  part: Part = 'both',
): LinkBytes {
  const { tokens, rowBytes, sentBytes, selections } = row
  const { logicalBytes, wireBytes } = links(sent, sentBytes)
  const send = selections * rowBytes + logicalBytes
  const receive = logicalBytes + tokens * rowBytes
  return { bytes: { send, receive, both: send + receive }[part], logicalBytes, wireBytes }
}

/** What a grouped call sends, by rows for each selection and by rows that cross: on cuda those are one for each rank. */
export interface GroupedSent {
  readonly selections: SentTokens
  readonly crossing: SentTokens
}

/** The weights stay where they are. */
export function dispatchGroupedBytes(
  { selections, crossing }: GroupedSent,
  row: { payloadBytes: number; topk: number },
): LinkBytes {
  const written = row.payloadBytes + idBytes
  const read = row.payloadBytes + row.topk * idBytes
  return { bytes: selections.sentTokens * read + total(selections) * written, ...links(crossing, written) }
}

export function combineGroupedBytes(
  { selections, crossing }: GroupedSent,
  { tokens, rowBytes, topk }: { tokens: number; rowBytes: number; topk: number },
): LinkBytes {
  const { bytes } = combineBytes(selections, { tokens, rowBytes })
  return { bytes: bytes + tokens * topk * (idBytes + weightBytes), ...links(crossing, rowBytes) }
}

function links(sent: SentTokens, rowBytes: number): { wireBytes: number; logicalBytes: number } {
  const logicalBytes = total(sent) * rowBytes
  return { wireBytes: logicalBytes - sent.toRank[sent.rank]! * rowBytes, logicalBytes }
}

function total({ toRank }: SentTokens): number {
  return toRank.reduce((sum, count) => sum + count, 0)
}
