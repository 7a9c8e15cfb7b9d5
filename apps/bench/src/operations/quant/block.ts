import { bf16ToF32Array } from '@moe-ep/core'
import { dequantizeBlock, quantizeBlock, reference } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { blockQuantizedBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, wrongRow } from '../../workload/matrix-rows.js'
import { bytesOf, patterns } from '../../workload/random-words.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'

const blockShape = [128, 128] as const

/** A weight as large as the tokens' rows. */
export const quantizeBlocks: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens: rows, hidden } = matrices
  const bands = Math.ceil(rows / 128)
  return prepareLocal(context, scope, {
    ...{ bytes: rows * hidden * 2 + blockQuantizedBytes({ rows, hidden }), rule: rules.quantizeBlock },
    allocate: () => ({
      weight: matrices.x(),
      out: { values: matrices.out('fp8e4m3'), scales: matrices.zeros([bands, Math.ceil(hidden / 128)], 'f32') },
    }),
    enqueue: ({ weight, out }, stream) => quantizeBlock(weight, { out, stream }),
    check({ weight, out }) {
      // All rows of a block decide its scale: whole bands are compared, the first one and the last, which may be cropped.
      for (const band of new Set([0, bands - 1])) {
        const [begin, end] = [band * 128, Math.min(rows, (band + 1) * 128)]
        const numbers = bf16ToF32Array(weight.slice(begin, end).data as Uint16Array)
        const expected = reference.quantizeBlock(numbers, { columns: hidden, blockShape })
        const rightScales = sameNumbers(rowElements(out.scales, band), expected.scales)
        if (!rightScales || !sameNumbers(bytesOf(out.values.slice(begin, end)), expected.values)) {
          return `rows ${begin} to ${end - 1} differ from the reference`
        }
      }
      return undefined
    },
  })
}

export const dequantizeBlocks: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens: rows, hidden } = matrices
  const scaleShape = [Math.ceil(rows / 128), Math.ceil(hidden / 128)]
  return prepareLocal(context, scope, {
    ...{ bytes: rows * hidden * 2 + blockQuantizedBytes({ rows, hidden }), rule: rules.dequantizeBlock },
    allocate: () => ({
      values: matrices.codes('fp8e4m3'),
      scales: matrices.random('scales', scaleShape, 'f32', patterns.scale),
      out: matrices.out('bf16'),
    }),
    enqueue: ({ values, scales, out }, stream) => dequantizeBlock(values, scales, { out, stream }),
    check: ({ values, scales, out }) =>
      wrongRow(rows, (row) => {
        const ofBand = rowElements(scales, Math.floor(row / 128))
        const options = { columns: hidden, blockShape, dtype: 'bf16' } as const
        const expected = reference.dequantizeBlock(rowBytes(values, row), ofBand, options)
        return sameNumbers(rowElements(out, row), expected as Uint16Array)
      }),
  })
}
