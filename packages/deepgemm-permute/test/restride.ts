import { dtypes, Tensor } from '@moe-ep/core'
import { rowBytes } from './support.js'

/** The same scales with other strides: columns or rows apart, or column by column. */
export function restride(scales: Tensor, how: 'packed' | 'wide' | 'column'): Tensor {
  if (how === 'packed') return scales
  const [rows, columns] = scales.shape as [number, number]
  const strides = how === 'wide' ? [columns * 3 + 1, 2] : [1, rows + 1]
  const span = 1 + Math.max(0, rows - 1) * strides[0]! + Math.max(0, columns - 1) * strides[1]!
  const bytes = scales.byteLength / Math.max(1, rows * columns)
  const elementBytes = dtypes[scales.dtype].bits / 8
  const target = new Uint8Array(span * elementBytes)
  rowBytes(scales).forEach((row, r) => {
    for (let c = 0; c < columns; c++) {
      target.set(row.subarray(c * bytes, (c + 1) * bytes), (r * strides[0]! + c * strides[1]!) * bytes)
    }
  })
  const { memory } = Tensor.copyOf(target, [span], scales.dtype)
  return new Tensor({ memory, dtype: scales.dtype, shape: scales.shape, strides })
}
