import { bf16ToF32Array, Tensor } from '@moe-ep/core'
import { bytesOf } from './random-words.js'
import { sampleRows } from './sample-rows.js'

/** Bytes of one row of a contiguous matrix. */
export function rowBytes(matrix: Tensor, row: number): Uint8Array {
  return bytesOf(matrix.slice(row, row + 1))
}

/** Numbers of one row of a contiguous bf16 matrix. */
export function rowNumbers(matrix: Tensor, row: number): Float32Array {
  return bf16ToF32Array(matrix.slice(row, row + 1).data as Uint16Array)
}

/** Stored elements of one row of a matrix with any strides. */
export function rowElements(matrix: Tensor, row: number): number[] {
  const { memory, dtype, byteOffset, shape, strides } = matrix
  const [rowStride, columnStride] = strides as [number, number]
  const elements = (shape[0]! - 1) * rowStride + (shape[1]! - 1) * columnStride + 1
  const { data } = new Tensor({ memory, dtype, byteOffset, shape: [elements] })
  return Array.from({ length: shape[1]! }, (_, column) => Number(data[row * rowStride + column * columnStride]))
}

/** The matrices of a batch [E, rows, columns] with any strides. */
export function matricesOf(batch: Tensor): Tensor[] {
  return Array.from({ length: batch.shape[0]! }, (_, index) => {
    const { memory, dtype, byteOffset, shape, strides } = batch.slice(index, index + 1)
    return new Tensor({ memory, dtype, byteOffset, shape: shape.slice(1), strides: strides.slice(1) })
  })
}

/** What is wrong with a matrix of which each row of a sample is looked at on its own. */
export function wrongRow(rows: number, isRight: (row: number) => boolean): string | undefined {
  const wrong = sampleRows(rows).find((row) => !isRight(row))
  return wrong === undefined ? undefined : `row ${wrong} differs from the reference`
}
