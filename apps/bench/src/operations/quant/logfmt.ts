import { dequantizeLogFmt10, logFmt10RowBytes, logFmtGroupSize, quantizeLogFmt10, reference } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizeBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { patterns } from '../../workload/random-words.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'

export const quantizeLogFmt: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  const groups = Math.ceil(hidden / logFmtGroupSize)
  return prepareLocal(context, scope, {
    ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'logFmt10'), rule: rules.quantize },
    allocate: () => ({
      x: matrices.x(),
      out: {
        codes: matrices.out('u8', logFmt10RowBytes(hidden)),
        ranges: matrices.zeros([tokens, groups, 2], 'bf16'),
      },
    }),
    enqueue: ({ x, out }, stream) => quantizeLogFmt10(x, { out, stream }),
    check: ({ x, out }) =>
      wrongRow(tokens, (row) => {
        const expected = reference.quantizeLogFmt10(rowNumbers(x, row), { hidden })
        const ranges = out.ranges.slice(row, row + 1).data as Uint16Array
        return sameNumbers(ranges, expected.ranges) && sameNumbers(rowBytes(out.codes, row), expected.codes)
      }),
  })
}

export const dequantizeLogFmt: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  const codeShape = [tokens, logFmt10RowBytes(hidden)]
  const rangeShape = [tokens, Math.ceil(hidden / logFmtGroupSize), 2]
  return prepareLocal(context, scope, {
    ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'logFmt10'), rule: rules.dequantize },
    allocate: () => ({
      codes: matrices.random('values', codeShape, 'u8', patterns.anyBits),
      ranges: matrices.random('ranges', rangeShape, 'bf16', patterns.range),
      out: matrices.out('bf16'),
    }),
    enqueue: ({ codes, ranges, out }, stream) => dequantizeLogFmt10(codes, ranges, { hidden, out, stream }),
    check: ({ codes, ranges, out }) =>
      wrongRow(tokens, (row) => {
        const rangesOfRow = ranges.slice(row, row + 1).data as Uint16Array
        const options = { hidden, dtype: 'bf16' } as const
        const expected = reference.dequantizeLogFmt10(rowBytes(codes, row), rangesOfRow, options)
        return sameNumbers(rowElements(out, row), expected as Uint16Array)
      }),
  })
}
