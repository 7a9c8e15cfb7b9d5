import type { Tensor } from '@moe-ep/core'
import { numGroupsOf, reference, type ScaleFormat, type ScaleLayout } from '@moe-ep/quant'
import type { QuantizedFormat } from '../../measure/quant-bytes.js'
import type { Matrices } from './matrix.js'

/** How scales of groups lie, and their bytes. */
export interface ScaleKind {
  readonly scaleFormat: ScaleFormat
  readonly scaleLayout: ScaleLayout
  readonly bytesAs: QuantizedFormat
}

export const scaleKinds = {
  rowMajor: { scaleFormat: 'f32', scaleLayout: 'row-major', bytesAs: 'fp8' },
  columnMajorTma: { scaleFormat: 'f32', scaleLayout: 'column-major-tma', bytesAs: 'fp8' },
  packed: { scaleFormat: 'ue8m0-packed', scaleLayout: 'column-major-tma', bytesAs: 'fp8Packed' },
} as const satisfies Record<string, ScaleKind>

/** Memory for the scales of groups of 128. */
export function scalesOf(matrices: Matrices, { scaleFormat, scaleLayout }: ScaleKind): Tensor {
  const groups = numGroupsOf(matrices.hidden)
  const [columns, dtype] =
    scaleFormat === 'ue8m0-packed' ? ([Math.ceil(groups / 4), 'i32'] as const) : ([groups, 'f32'] as const)
  return scaleLayout === 'row-major' ? matrices.out(dtype, columns) : matrices.columnMajor(columns, dtype)
}

/** The stored elements that stand for the f32 scales of one row. */
export function storedScales(scales: Float32Array, { scaleFormat }: ScaleKind): ArrayLike<number> {
  return scaleFormat === 'ue8m0-packed' ? reference.packScales(scales, scales.length) : scales
}
