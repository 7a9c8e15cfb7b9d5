import { argumentError } from '@moe-ep/core'

/** Sizes of one expert. */
export interface ExpertSizes {
  /** Elements of a token row (K). */
  readonly hidden: number
  /** Rows of the gate half and of the up half of w13 (I). */
  readonly intermediate: number
}

/** One expert's rows and weights, all f32 and row-major. */
export interface ExpertOperands {
  /** Rows [m, K]; m may be 0. */
  readonly x: Float32Array
  /** Gate rows, then up rows: [2I, K]. */
  readonly w13: Float32Array
  /** [K, I]. */
  readonly w2: Float32Array
}

/** Throws unless both sizes are positive integers. */
export function checkSizes({ hidden, intermediate }: ExpertSizes): void {
  for (const [name, value] of Object.entries({ hidden, intermediate })) {
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(name, 'a positive integer', value)
  }
}

/** The number of rows m, after checking that all three arrays have the lengths that `sizes` asks for. */
export function checkOperands({ hidden, intermediate }: ExpertSizes, { x, w13, w2 }: ExpertOperands): number {
  checkFloat32('x', x)
  if (x.length % hidden !== 0) throw argumentError('x', `a multiple of hidden (${hidden}) elements`, x.length)
  checkLength('w13', w13, 2 * intermediate * hidden)
  checkLength('w2', w2, hidden * intermediate)
  return x.length / hidden
}

/** Throws unless `value` is a Float32Array of exactly `length` elements. */
export function checkLength(name: string, value: Float32Array, length: number): void {
  checkFloat32(name, value)
  if (value.length !== length) throw argumentError(name, `${length} elements`, value.length)
}

function checkFloat32(name: string, value: unknown): void {
  if (!(value instanceof Float32Array)) throw argumentError(name, 'a Float32Array', value)
}
