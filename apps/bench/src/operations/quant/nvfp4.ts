import { Tensor } from '@moe-ep/core'
import {
  dequantizeNvfp4,
  nvfp4GroupSize,
  type Nvfp4ScaleLayout,
  nvfp4ScaleShape,
  quantizeNvfp4,
  reference,
} from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizeBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { bytesOf, patterns } from '../../workload/random-words.js'
import { sameNumbers, sampleRows } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'

// 448 * 6 over the largest magnitude of the inputs, which is below 2.
const globalScale = 1344

export function quantizeNvfp4Of(scaleLayout: Nvfp4ScaleLayout): Operation {
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    const groups = Math.ceil(hidden / nvfp4GroupSize)
    const scale = Tensor.from([globalScale], [1], 'f32', context.device)
    return prepareLocal(context, scope, {
      ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'nvfp4'), rule: rules.quantize },
      allocate: () => ({
        x: matrices.x(),
        out: {
          values: matrices.out('fp4e2m1'),
          scales: matrices.zeros(nvfp4ScaleShape(tokens, hidden, scaleLayout), 'fp8e4m3'),
        },
      }),
      enqueue: ({ x, out }, stream) => quantizeNvfp4(x, scale, { scaleLayout, out, stream }),
      check({ x, out }) {
        const expectedScales = new Uint8Array(tokens * groups)
        const sampled = new Uint8Array(tokens * groups)
        for (const row of sampleRows(tokens)) {
          const { scales } = reference.quantizeNvfp4(rowNumbers(x, row), { hidden, globalScale })
          expectedScales.set(scales, row * groups)
          sampled.fill(1, row * groups, (row + 1) * groups)
        }
        const arranged = (codes: Uint8Array): Uint8Array =>
          reference.arrangeNvfp4Scales(codes, { rows: tokens, groups, layout: scaleLayout })
        const [expected, compare, found] = [arranged(expectedScales), arranged(sampled), bytesOf(out.scales)]
        if (compare.some((yes, i) => yes === 1 && found[i] !== expected[i])) return 'scales differ from the reference'
        return wrongRow(tokens, (row) => {
          const { values } = reference.quantizeNvfp4(rowNumbers(x, row), { hidden, globalScale })
          return sameNumbers(rowBytes(out.values, row), values)
        })
      },
    })
  }
}

export const dequantizeNvfp4Rows: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  const scaleShape = nvfp4ScaleShape(tokens, hidden, 'row-major')
  const scale = Tensor.from([globalScale], [1], 'f32', context.device)
  return prepareLocal(context, scope, {
    ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'nvfp4'), rule: rules.dequantize },
    allocate: () => ({
      values: matrices.codes('fp4e2m1'),
      scales: matrices.random('scales', scaleShape, 'fp8e4m3', patterns.positiveFp8),
      out: matrices.out('bf16'),
    }),
    enqueue: ({ values, scales, out }, stream) => dequantizeNvfp4(values, scales, scale, { out, stream }),
    check: ({ values, scales, out }) =>
      wrongRow(tokens, (row) => {
        const options = { hidden, globalScale, to: 'bf16' } as const
        const expected = reference.dequantizeNvfp4(rowBytes(values, row), rowBytes(scales, row), options)
        return sameNumbers(rowElements(out, row), expected as Uint16Array)
      }),
  })
}
