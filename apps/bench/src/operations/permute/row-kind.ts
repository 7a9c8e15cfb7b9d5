import type { DType, Tensor } from '@moe-ep/core'
import type { MovedRow } from '../../measure/byte-rules.js'
import type { Scope } from '../../measure/scope.js'
import { fillRandom, patterns, randomKey } from '../../workload/random-words.js'
import type { BenchContext } from '../operation.js'

/**
 * What is permuted: bf16 rows, fp8 rows with f32 scales (row by row, or column by column as TMA reads them), or fp8 rows with
 * exponents of one byte that become packed words, column by column.
 */
export type RowKind = 'bf16' | 'fp8' | 'fp8-column-major' | 'fp8-packed'

export interface PermuteInputs {
  readonly x: Tensor
  readonly scales: Tensor | undefined
}

const groupsOf = (hidden: number): number => Math.ceil(hidden / 128)
const wordsOf = (hidden: number): number => Math.ceil(groupsOf(hidden) / 4)

export function rowDtype(kind: RowKind): DType {
  return kind === 'bf16' ? 'bf16' : 'fp8e4m3'
}

export function movedRowOf(kind: RowKind, hidden: number): MovedRow {
  if (kind === 'bf16') return { read: hidden * 2, written: hidden * 2 }
  if (kind === 'fp8-packed') return { read: hidden + groupsOf(hidden), written: hidden + wordsOf(hidden) * 4 }
  return { read: hidden + groupsOf(hidden) * 4, written: hidden + groupsOf(hidden) * 4 }
}

export function permuteInputs(context: BenchContext, scope: Scope, kind: RowKind, rows: number): PermuteInputs {
  const { hidden, seed } = context.options
  const { rank } = context.group
  const x = scope.zeros([rows, hidden], rowDtype(kind))
  fillRandom(x, randomKey(seed, 'permute', rank), kind === 'bf16' ? patterns.bf16 : patterns.fp8)
  if (kind === 'bf16') return { x, scales: undefined }
  const packed = kind === 'fp8-packed'
  const scales = scope.zeros([rows, groupsOf(hidden)], packed ? 'u8' : 'f32')
  fillRandom(scales, randomKey(seed, 'permute scales', rank), packed ? patterns.exponent : patterns.scale)
  return { x, scales }
}

/** Memory for the permuted scales; `lead` is [rows] or [experts, rows]. */
export function permutedScales(
  scope: Scope,
  kind: RowKind,
  lead: readonly number[],
  hidden: number,
): { scales?: Tensor } {
  if (kind === 'bf16') return {}
  if (kind === 'fp8') return { scales: scope.zeros([...lead, groupsOf(hidden)], 'f32') }
  if (kind === 'fp8-packed') return { scales: scope.columnMajor([...lead, wordsOf(hidden)], 'i32') }
  return { scales: scope.columnMajor([...lead, groupsOf(hidden)], 'f32') }
}

/** The options of an operation that go with its scales. */
export function scaleOptions({ scales }: PermuteInputs, kind: RowKind): { scales?: Tensor; packScales?: boolean } {
  return scales === undefined ? {} : { scales, packScales: kind === 'fp8-packed' }
}
