import { siluF32 } from '@moe-ep/core'
import { checkOperands, checkSizes, type ExpertOperands, type ExpertSizes } from './expert-sizes.js'

/**
 * Rows [m, K] of one expert, `(silu(x . gate^T) * (x . up^T)) . w2^T`, computed one f32 operation at a time in index
 * order, silu as core's `siluF32`: the same bits on every machine, and the oracle for quicker engines. Slow, obvious, complete.
 *
 * @throws ERR_MOE_EP_ARGUMENT when a size is not a positive integer or a length does not fit the sizes.
 */
export function referenceExpert(options: ExpertSizes & ExpertOperands): Float32Array {
  const { hidden, intermediate, x, w13, w2 } = options
  checkSizes(options)
  const rows = checkOperands(options, options)
  const result = new Float32Array(rows * hidden)
  const activated = new Float32Array(intermediate)
  for (let row = 0; row < rows; row++) {
    const input = x.subarray(row * hidden, (row + 1) * hidden)
    for (let i = 0; i < intermediate; i++) {
      const gate = dot(input, w13, i * hidden)
      const up = dot(input, w13, (intermediate + i) * hidden)
      activated[i] = Math.fround(siluF32(gate) * up)
    }
    for (let column = 0; column < hidden; column++) {
      result[row * hidden + column] = dot(activated, w2, column * intermediate)
    }
  }
  return result
}

/** Sum of products of `left` with as many elements of `right` from `offset` on, rounded to f32 after every operation. */
function dot(left: Float32Array, right: Float32Array, offset: number): number {
  let sum = 0
  for (let i = 0; i < left.length; i++) sum = Math.fround(sum + Math.fround(left[i]! * right[offset + i]!))
  return sum
}
