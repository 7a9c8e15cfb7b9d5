import { e8m0ToF32, f32ToBits } from '@moe-ep/core'
import type { ScaleLayout } from '../scale-layout.js'

/**
 * The words of 'ue8m0-packed' scales.
 * @param scales f32 powers of two (or infinity) [M, G].
 * @returns i32 [M, ceil(G / 4)]: byte j of word p is the exponent of group 4p + j, 0 past the last group.
 */
export function packScales(scales: ArrayLike<number>, groups: number): Int32Array {
  const words = Math.ceil(groups / 4)
  const packed = new Int32Array((scales.length / groups) * words)
  for (let i = 0; i < scales.length; i++) {
    const group = i % groups
    const word = Math.floor(i / groups) * words + Math.floor(group / 4)
    packed[word] = packed[word]! | (((f32ToBits(scales[i]!) >>> 23) & 0xff) << (8 * (group % 4)))
  }
  return packed
}

/** The f32 scales [M, G] of packed words [M, ceil(G / 4)]; an exponent byte of 255 gives NaN. */
export function unpackScales(words: ArrayLike<number>, groups: number): Float32Array {
  const columns = Math.ceil(groups / 4)
  return Float32Array.from({ length: (words.length / columns) * groups }, (_, i) => {
    const group = i % groups
    return e8m0ToF32((words[Math.floor(i / groups) * columns + Math.floor(group / 4)]! >>> (8 * (group % 4))) & 0xff)
  })
}

/** The memory of a scale tensor [M, columns] whose row-major elements are these; 0 in the gaps between columns. */
export function arrangeScales(
  elements: Float32Array | Int32Array,
  options: { readonly rows: number; readonly columns: number; readonly layout: ScaleLayout },
): Float32Array | Int32Array {
  const { rows, columns, layout } = options
  if (layout === 'row-major') return elements.slice()
  const stride = layout === 'column-major-tma' ? Math.ceil(rows / 4) * 4 : rows
  const memory = elements instanceof Int32Array ? new Int32Array(stride * columns) : new Float32Array(stride * columns)
  elements.forEach((element, i) => {
    memory[(i % columns) * stride + Math.floor(i / columns)] = element
  })
  return memory
}
