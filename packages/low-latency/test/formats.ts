import { Tensor } from '@moe-ep/core'
import type { LowLatencyDispatchOptions, reference } from '../src/index.js'

/** How rows travel: what dispatch is told, and what the reference is. */
export interface Format {
  readonly options: Partial<LowLatencyDispatchOptions>
  readonly reference: reference.ReferenceFormat
}

const nvfp4: reference.ReferenceFormat = { format: 'nvfp4', xGlobalScale: 1000 }

export const formats: Readonly<Record<string, Format>> = {
  bf16: { options: { useFp8: false }, reference: { format: 'bf16' } },
  fp8: { options: {}, reference: { format: 'fp8' } },
  'fp8, powers of two': {
    options: { useFp8: true, roundScale: true },
    reference: { format: 'fp8', roundScale: true },
  },
  'fp8, packed': { options: { format: 'fp8', useUe8m0: true }, reference: { format: 'fp8', useUe8m0: true } },
  mxfp8: { options: { format: 'mxfp8' }, reference: { format: 'mxfp8' } },
  nvfp4: { options: { format: 'nvfp4' }, reference: nvfp4 },
}

/** What dispatch is told of a format, with a global scale of its own where there is one. */
export function optionsOf(format: string): Partial<LowLatencyDispatchOptions> {
  const { options } = formats[format]!
  if (format !== 'nvfp4') return options
  return { ...options, xGlobalScale: Tensor.from([nvfp4.xGlobalScale!], [1], 'f32') }
}

/** Rows of fp4 are whole vectors from 32 elements on. */
export function wholeRows(format: string, hidden: number): number {
  return format === 'nvfp4' ? Math.ceil(hidden / 32) * 32 : hidden
}

/** Reads scales as they are stored; gives those of a row. */
export async function scalesOf(scales: Tensor): Promise<(block: number, row: number) => number[]> {
  const [blocks, rows, columns] = scales.shape as [number, number, number]
  const { memory, dtype, byteOffset } = scales
  const stored = await new Tensor({ memory, dtype, byteOffset, shape: [blocks, columns, rows] }).read()
  const [ofBlock, ofRow, ofColumn] = scales.strides as [number, number, number]
  return (block, row) =>
    Array.from({ length: columns }, (_, column) => Number(stored[block * ofBlock + row * ofRow + column * ofColumn]))
}
