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

export const rules = {
  layout: 'ids read; isTokenInRank and both count tables written',
  quantize: 'bf16 rows read; fp8 rows and f32 scales written',
  dequantize: 'fp8 rows and f32 scales read; bf16 rows written',
  permute:
    'received rows (with scales) and ids read once; one row (with scales) and id written for each local slot; inverse written',
  unpermute: 'one row read for each local slot; ids, weights, inverse read; one row written for each received row',
  dispatch:
    'each sent token read once; row, scales, source index, ids and weights written once for each destination rank',
  combine: 'one row read for each (token, rank) pair; one row written for each token; staging copies not counted',
  put: 'source read, destination written',
} as const

export function layoutBytes(s: { tokens: number; topk: number; experts: number; ranks: number }): number {
  return s.tokens * s.topk * idBytes + s.tokens * s.ranks + (s.ranks + s.experts) * 4
}

/** The same for both directions. */
export function quantizeBytes({ rows, hidden }: { rows: number; hidden: number }): number {
  return rows * (hidden * 2 + hidden + scaleBytesOf(hidden))
}

/** Rows in the shape that a rank received them: `slots` is the number of slots that name a local expert. */
export interface ReceivedRows {
  readonly rows: number
  readonly slots: number
  readonly topk: number
}

export function permuteBytes({ rows, slots, topk }: ReceivedRows, movedRowBytes: number): number {
  return rows * (movedRowBytes + 2 * topk * idBytes) + slots * (movedRowBytes + idBytes)
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

function links(sent: SentTokens, rowBytes: number): { wireBytes: number; logicalBytes: number } {
  const logicalBytes = total(sent) * rowBytes
  return { wireBytes: logicalBytes - sent.toRank[sent.rank]! * rowBytes, logicalBytes }
}

function total({ toRank }: SentTokens): number {
  return toRank.reduce((sum, count) => sum + count, 0)
}
