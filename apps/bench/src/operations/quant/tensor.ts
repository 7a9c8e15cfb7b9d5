import { Tensor } from '@moe-ep/core'
import { dequantizePerTensor, quantizePerTensor, reference } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizeBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'

const givenScale = 2 ** -8

/** Static: under a given scale. Dynamic: the scale is found, which takes a first pass over the rows. */
export function quantizeTensorOf(kind: 'static' | 'dynamic'): Operation {
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    const firstPass = kind === 'dynamic' ? tokens * hidden * 2 : 0
    const bytes = quantizeBytes({ rows: tokens, hidden }, 'fp8PerTensor') + firstPass
    const scale = kind === 'static' ? Tensor.from([givenScale], [1], 'f32', context.device) : undefined
    return prepareLocal(context, scope, {
      ...{ bytes, rule: kind === 'dynamic' ? rules.quantizeDynamic : rules.quantize },
      allocate: () => ({
        x: matrices.x(),
        out: { values: matrices.out('fp8e4m3'), ...(scale === undefined && { scale: matrices.zeros([1], 'f32') }) },
      }),
      enqueue: ({ x, out }, stream) => quantizePerTensor(x, { ...(scale && { scale }), out, stream }),
      check({ x, out }) {
        let used = givenScale
        if (out.scale !== undefined) {
          // The largest magnitude of every row decides as all elements do.
          const largest = Array.from({ length: tokens }, (_, row) => Math.max(...rowNumbers(x, row).map(Math.abs)))
          used = reference.quantizePerTensor(largest).scale
          if (out.scale.data[0] !== used) return 'the scale differs from the reference'
        }
        return wrongRow(tokens, (row) => {
          const expected = reference.quantizePerTensor(rowNumbers(x, row), used)
          return sameNumbers(rowBytes(out.values, row), expected.values)
        })
      },
    })
  }
}

export const dequantizeTensor: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  const scale = Tensor.from([givenScale], [1], 'f32', context.device)
  return prepareLocal(context, scope, {
    ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'fp8PerTensor'), rule: rules.dequantize },
    allocate: () => ({ values: matrices.codes('fp8e4m3'), out: matrices.out('bf16') }),
    enqueue: ({ values, out }, stream) => dequantizePerTensor(values, scale, { out, stream }),
    check: ({ values, out }) =>
      wrongRow(tokens, (row) => {
        const expected = reference.dequantizePerTensor(rowBytes(values, row), givenScale, 'bf16')
        return sameNumbers(rowElements(out, row), expected as Uint16Array)
      }),
  })
}
