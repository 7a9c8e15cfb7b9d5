import { dequantizeMxfp4, dequantizeMxfp8, mxGroupSize, quantizeMxfp4, quantizeMxfp8, reference } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizeBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { patterns } from '../../workload/random-words.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'

const formats = {
  mxfp8: { dtype: 'fp8e4m3', quantize: quantizeMxfp8, dequantize: dequantizeMxfp8 },
  mxfp4: { dtype: 'fp4e2m1', quantize: quantizeMxfp4, dequantize: dequantizeMxfp4 },
} as const

export function quantizeMxOf(format: keyof typeof formats): Operation {
  const { dtype, quantize } = formats[format]
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    const groups = Math.ceil(hidden / mxGroupSize)
    return prepareLocal(context, scope, {
      ...{ bytes: quantizeBytes({ rows: tokens, hidden }, format), rule: rules.quantize },
      allocate: () => ({ x: matrices.x(), out: { values: matrices.out(dtype), scales: matrices.out('e8m0', groups) } }),
      enqueue: ({ x, out }, stream) => quantize(x, { out, stream }),
      check: ({ x, out }) =>
        wrongRow(tokens, (row) => {
          const expected = reference.quantizeMx(rowNumbers(x, row), { hidden, dtype, scaleRule: 'ocp' })
          const rightScales = sameNumbers(rowBytes(out.scales, row), expected.scales)
          return rightScales && sameNumbers(rowBytes(out.values, row), expected.values)
        }),
    })
  }
}

export function dequantizeMxOf(format: keyof typeof formats): Operation {
  const { dtype, dequantize } = formats[format]
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    const scaleShape = [tokens, Math.ceil(hidden / mxGroupSize)]
    return prepareLocal(context, scope, {
      ...{ bytes: quantizeBytes({ rows: tokens, hidden }, format), rule: rules.dequantize },
      allocate: () => ({
        values: matrices.codes(dtype),
        scales: matrices.random('scales', scaleShape, 'e8m0', patterns.exponent),
        out: matrices.out('bf16'),
      }),
      enqueue: ({ values, scales, out }, stream) => dequantize(values, scales, { out, stream }),
      check: ({ values, scales, out }) =>
        wrongRow(tokens, (row) => {
          const options = { hidden, dtype, to: 'bf16' } as const
          const expected = reference.dequantizeMx(rowBytes(values, row), rowBytes(scales, row), options)
          return sameNumbers(rowElements(out, row), expected as Uint16Array)
        }),
    })
  }
}
