import { logFmt10RowBytes } from '@moe-ep/quant'

const groups = (hidden: number, groupSize: number): number => Math.ceil(hidden / groupSize)

/** Bytes of one quantised row with its scales, by format. Single scales of a whole tensor are left out. */
export const quantizedRowBytes = {
  fp8: (hidden: number) => hidden + 4 * groups(hidden, 128),
  /** Exponents of four groups in a word. */
  fp8Packed: (hidden: number) => hidden + 4 * groups(hidden, 512),
  fp8PerToken: (hidden: number) => hidden + 4,
  fp8PerTensor: (hidden: number) => hidden,
  mxfp8: (hidden: number) => hidden + groups(hidden, 32),
  mxfp4: (hidden: number) => hidden / 2 + groups(hidden, 32),
  nvfp4: (hidden: number) => hidden / 2 + groups(hidden, 16),
  logFmt10: (hidden: number) => logFmt10RowBytes(hidden) + 4 * groups(hidden, 128),
} as const

export type QuantizedFormat = keyof typeof quantizedRowBytes

/** Bytes of fp8 with a scale for each block of 128 rows and 128 columns. */
export function blockQuantizedBytes({ rows, hidden }: { rows: number; hidden: number }): number {
  return rows * hidden + 4 * groups(rows, 128) * groups(hidden, 128)
}

/** A bf16 matrix one way, its quantised form the other. */
export function quantizeBytes({ rows, hidden }: { rows: number; hidden: number }, format: QuantizedFormat): number {
  return rows * (hidden * 2 + quantizedRowBytes[format](hidden))
}
