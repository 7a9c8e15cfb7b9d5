import { encode, type StorageArray } from '@moe-ep/core'
import { defaultGroupSize, reference as quant } from '@moe-ep/quant'
import type { RowFormatName } from './row-format.js'

/** What a dispatch's options say of its rows; see `LowLatencyDispatchOptions`. */
export interface ReferenceFormat {
  readonly format: RowFormatName
  /** Of fp8. @default useUe8m0 */
  readonly roundScale?: boolean
  /** Of fp8. @default false */
  readonly useUe8m0?: boolean
  /** Of NVFP4: the f32. */
  readonly xGlobalScale?: number
}

/** A row as experts receive it, in the storage form of packedRecvX and of packedRecvXScales. */
export interface ReferenceCast {
  readonly values: StorageArray
  /** Undefined for bf16. */
  readonly scales: ArrayLike<number> | undefined
}

/**
 * What a row of bf16 values becomes on its way.
 * @throws when NVFP4 has no global scale.
 */
export function castRow(row: ArrayLike<number>, options: ReferenceFormat): ReferenceCast {
  const hidden = row.length
  const { format, useUe8m0 = false, roundScale = useUe8m0, xGlobalScale } = options
  switch (format) {
    case 'bf16':
      return { values: encode('bf16', row), scales: undefined }
    case 'fp8': {
      const { values, scales } = quant.quantizePerTokenGroup(row, {
        ...{ hidden, groupSize: defaultGroupSize, numerics: 'deepep', powerOfTwo: roundScale },
      })
      return { values, scales: useUe8m0 ? quant.packScales(scales, scales.length) : scales }
    }
    case 'mxfp8':
      return quant.quantizeMx(row, { hidden, dtype: 'fp8e4m3', scaleRule: 'ocp' })
    case 'nvfp4':
      if (xGlobalScale === undefined) throw new TypeError('NVFP4 needs xGlobalScale')
      return quant.quantizeNvfp4(row, { hidden, globalScale: xGlobalScale })
  }
}

/** What a result of bf16 values is after its way home as LogFMT-10, in f32. */
export function throughLogFmt(row: readonly number[]): number[] {
  const hidden = row.length
  const { codes, ranges } = quant.quantizeLogFmt10(row, { hidden })
  return Array.from(quant.dequantizeLogFmt10(codes, ranges, { hidden, dtype: 'f32' }), Number)
}
