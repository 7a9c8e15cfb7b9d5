import { reference, siluMul, siluMulQuantize, type SiluMulNumerics } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizedRowBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'
import { scaleKinds, scalesOf } from './scale-kind.js'

export const siluMultiply: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  return prepareLocal(context, scope, {
    ...{ bytes: tokens * (hidden * 4 + hidden * 2), rule: rules.siluMul },
    allocate: () => ({ x: matrices.x(2 * hidden), out: matrices.out('bf16') }),
    enqueue: ({ x, out }, stream) => siluMul(x, { out, stream }),
    check: ({ x, out }) =>
      wrongRow(tokens, (row) => {
        const expected = reference.siluMul(rowNumbers(x, row), { hidden, dtype: 'bf16' })
        return sameNumbers(rowElements(out, row), expected as Uint16Array)
      }),
  })
}

export function siluMulQuantizeOf(numerics: SiluMulNumerics): Operation {
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    return prepareLocal(context, scope, {
      ...{ bytes: tokens * (hidden * 4 + quantizedRowBytes.fp8(hidden)), rule: rules.siluMulQuantize },
      allocate: () => ({
        x: matrices.x(2 * hidden),
        out: { values: matrices.out('fp8e4m3'), scales: scalesOf(matrices, scaleKinds.rowMajor) },
      }),
      enqueue: ({ x, out }, stream) => siluMulQuantize(x, { numerics, out, stream }),
      check: ({ x, out }) =>
        wrongRow(tokens, (row) => {
          const options = { hidden, groupSize: 128, dtype: 'bf16', numerics } as const
          const expected = reference.siluMulQuantize(rowNumbers(x, row), options)
          const rightScales = sameNumbers(rowElements(out.scales, row), expected.scales)
          return rightScales && sameNumbers(rowBytes(out.values, row), expected.values)
        }),
    })
  }
}
