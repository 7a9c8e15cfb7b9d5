import { argumentError, bf16ToF32, decode, f32ToFp8E4m3 } from '@moe-ep/core'

/** Rows and columns of a matrix that share one scale. At the right and lower edges blocks are smaller. */
export const blockSize = 128

/** Sizes of a row-major matrix. */
export interface MatrixSizes {
  readonly rows: number
  readonly columns: number
}

/** An fp8 e4m3 matrix and the factors of its blocks. */
export interface BlockQuantized {
  /** e4m3 bits [rows, columns]. */
  readonly bits: Uint8Array
  /** f32 [ceil(rows / 128), ceil(columns / 128)]: elements of the block times this factor are the values. */
  readonly scales: Float32Array
}

/** Largest finite e4m3 value. */
const largest = 448
/** A block of smaller values gets the scale of this one, so that no scale is zero. */
const amaxFloor = 1e-4

/** Shape of the scales of a matrix. */
export function scaleShape({ rows, columns }: MatrixSizes): [number, number] {
  return [Math.ceil(rows / blockSize), Math.ceil(columns / blockSize)]
}

/**
 * Values of an fp8 matrix: each element times its block's scale, in f32.
 * @throws ERR_MOE_EP_ARGUMENT when bits or scales do not fit the sizes.
 */
export function dequantizeBlocks({ bits, scales }: BlockQuantized, sizes: MatrixSizes): Float32Array {
  const [blockRows, blockColumns] = scaleShape(sizes)
  const { rows, columns } = sizes
  if (bits.length !== rows * columns) throw argumentError('bits', `${rows * columns} elements`, bits.length)
  if (scales.length !== blockRows * blockColumns)
    throw argumentError('scales', `${blockRows * blockColumns} elements`, scales.length)
  const table = fp8Values()
  const result = new Float32Array(bits.length)
  for (let row = 0; row < rows; row++) {
    const scaleRow = Math.floor(row / blockSize) * blockColumns
    for (let block = 0; block < blockColumns; block++) {
      const scale = scales[scaleRow + block]!
      const end = row * columns + Math.min(columns, (block + 1) * blockSize)
      for (let i = row * columns + block * blockSize; i < end; i++) result[i] = table[bits[i]!]! * scale
    }
  }
  return result
}

/**
 * A matrix as fp8 e4m3 with a scale for each block: amax = max(1e-4, largest magnitude), scale = amax / 448, element =
 * e4m3(value * (1 / scale)), each step in f32 and rounded to nearest even.
 *
 * @throws ERR_MOE_EP_ARGUMENT when the values do not fit the sizes.
 */
export function quantizeBlocks(values: Float32Array, sizes: MatrixSizes): BlockQuantized {
  const { rows, columns } = sizes
  if (values.length !== rows * columns) throw argumentError('values', `${rows * columns} elements`, values.length)
  const [blockRows, blockColumns] = scaleShape(sizes)
  const scales = new Float32Array(blockRows * blockColumns)
  const reciprocals = new Float32Array(scales.length)
  const blockOf = (row: number, column: number): number =>
    Math.floor(row / blockSize) * blockColumns + Math.floor(column / blockSize)
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) {
      const block = blockOf(row, column)
      scales[block] = Math.max(scales[block]!, Math.abs(values[i]!))
    }
  }
  for (const [block, amax] of scales.entries()) {
    scales[block] = Math.max(Math.fround(amaxFloor), amax) / largest
    reciprocals[block] = 1 / scales[block]!
  }
  const scaled = new Float32Array(1)
  const word = new Uint32Array(scaled.buffer)
  const table = fp8Bits()
  const bits = new Uint8Array(values.length)
  for (let row = 0, i = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, i++) {
      scaled[0] = values[i]! * reciprocals[blockOf(row, column)]!
      bits[i] = table[halfOf(word[0]!)]!
    }
  }
  return { bits, scales }
}

let valueTable: Float32Array | undefined
let bitsTable: Uint8Array | undefined

function fp8Values(): Float32Array {
  valueTable ??= decode(
    'fp8e4m3',
    Uint8Array.from({ length: 256 }, (_, bits) => bits),
  ) as Float32Array
  return valueTable
}

/** e4m3 bits of everything that {@link halfOf} gives: a look-up is far quicker than rounding each element anew. */
function fp8Bits(): Uint8Array {
  bitsTable ??= Uint8Array.from({ length: 2 ** 16 }, (_, half) => f32ToFp8E4m3(bf16ToF32(half)))
  return bitsTable
}

/**
 * The upper half of an f32's bits, its last bit set where the lower half is not zero. e4m3 keeps 3 of the 7 mantissa
 * bits that are left, so rounding sees the same side of every tie as with all 23.
 */
function halfOf(bits: number): number {
  return (bits >>> 16) | ((bits & 0xffff) === 0 ? 0 : 1)
}
