import { defaultAlignment } from '../compute-aligned-m.js'

const blockShape: readonly [number, number] = Object.freeze([defaultAlignment, defaultAlignment])

/**
 * The tile of the contiguous layout [rows, columns]: [128, 128], DeepGEMM's on SM90. Every operation that takes an `alignment`
 * works with any other as well.
 */
export function deepGemmBlockShape(): readonly [number, number] {
  return blockShape
}
