import { requireInteger } from '@moe-ep/core'

/** Elements that share a range in LogFMT-10. */
export const logFmtGroupSize = 128

/**
 * Bytes of a row of `hidden` elements in LogFMT-10: 160 for each 128, and ceil(10 * n / 8) for a last group of n.
 * @throws ERR_MOE_EP_ARGUMENT when `hidden` is not an integer, 1 or more.
 */
export function logFmt10RowBytes(hidden: number): number {
  requireInteger('hidden', hidden, 1)
  return Math.floor(hidden / logFmtGroupSize) * 160 + Math.ceil(((hidden % logFmtGroupSize) * 10) / 8)
}

/** The shapes of codes and ranges of an [M, H] matrix. */
export function logFmt10Shapes(rows: number, hidden: number): { readonly codes: number[]; readonly ranges: number[] } {
  return { codes: [rows, logFmt10RowBytes(hidden)], ranges: [rows, Math.ceil(hidden / logFmtGroupSize), 2] }
}
