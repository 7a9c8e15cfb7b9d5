import type { Tensor } from '@moe-ep/core'
import { reference } from '@moe-ep/deepgemm-permute'
import { rowBytes, rowElements } from '../../workload/matrix-rows.js'
import { sameNumbers, sampleRows } from '../../workload/sample-rows.js'
import type { PermuteInputs, RowKind } from './row-kind.js'

/** Rows that were permuted, and where they must lie. */
export interface PermutedRows {
  readonly kind: RowKind
  readonly inputs: PermuteInputs
  readonly topk: number
  /** Local expert of each slot, -1 for none. */
  readonly topkIdx: Int32Array
  /** Row of each slot. */
  readonly inverse: Int32Array
  readonly rows: Tensor
  /** The scales at a place. */
  readonly scalesAt?: (place: number) => ArrayLike<number>
  readonly expertIds?: Tensor
}

/** Looks at the places of all local slots of a sample of rows. */
export function wrongPermutedRow(permuted: PermutedRows): string | undefined {
  const { kind, inputs, topk, topkIdx, inverse, rows, scalesAt, expertIds } = permuted
  for (const token of sampleRows(inputs.x.shape[0]!)) {
    const moved = inputs.scales && rowElements(inputs.scales, token)
    const scales = moved && kind === 'fp8-packed' ? reference.packUe8m0(moved) : moved
    for (let slot = token * topk; slot < (token + 1) * topk; slot++) {
      const place = inverse[slot]!
      if (topkIdx[slot]! < 0) continue
      if (expertIds && expertIds.data[place] !== topkIdx[slot]) return `the expert of row ${place} is wrong`
      if (!sameNumbers(rowBytes(rows, place), rowBytes(inputs.x, token))) {
        return `row ${place} is not that of token ${token}`
      }
      if (scales && !sameNumbers(scalesAt!(place), scales)) return `scales of row ${place} are wrong`
    }
  }
  return undefined
}
