import { dequantizePerTokenGroup, numGroupsOf, quantizePerToken, quantizePerTokenGroup, reference } from '@moe-ep/quant'
import { rules } from '../../measure/byte-rules.js'
import { quantizeBytes } from '../../measure/quant-bytes.js'
import { rowBytes, rowElements, rowNumbers, wrongRow } from '../../workload/matrix-rows.js'
import { patterns } from '../../workload/random-words.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { Matrices } from './matrix.js'
import { type ScaleKind, scalesOf, storedScales } from './scale-kind.js'

const groupSize = 128

export function quantizeGroupsOf(kind: ScaleKind): Operation {
  const { scaleFormat, scaleLayout, bytesAs } = kind
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    return prepareLocal(context, scope, {
      ...{ bytes: quantizeBytes({ rows: tokens, hidden }, bytesAs), rule: rules.quantize },
      allocate: () => ({ x: matrices.x(), out: { values: matrices.out('fp8e4m3'), scales: scalesOf(matrices, kind) } }),
      enqueue: ({ x, out }, stream) => quantizePerTokenGroup(x, { scaleFormat, scaleLayout, out, stream }),
      check: ({ x, out }) =>
        wrongRow(tokens, (row) => {
          const powerOfTwo = scaleFormat !== 'f32'
          const options = { hidden, groupSize, numerics: 'vllm', powerOfTwo } as const
          const expected = reference.quantizePerTokenGroup(rowNumbers(x, row), options)
          const rightScales = sameNumbers(rowElements(out.scales, row), storedScales(expected.scales, kind))
          return rightScales && sameNumbers(rowBytes(out.values, row), expected.values)
        }),
    })
  }
}

export const quantizeTokens: Operation = async (context, scope) => {
  const matrices = new Matrices(context, scope)
  const { tokens, hidden } = matrices
  return prepareLocal(context, scope, {
    ...{ bytes: quantizeBytes({ rows: tokens, hidden }, 'fp8PerToken'), rule: rules.quantize },
    allocate: () => ({ x: matrices.x(), out: { values: matrices.out('fp8e4m3'), scales: matrices.out('f32', 1) } }),
    enqueue: ({ x, out }, stream) => quantizePerToken(x, { out, stream }),
    check: ({ x, out }) =>
      wrongRow(tokens, (row) => {
        const expected = reference.quantizePerToken(rowNumbers(x, row), { hidden })
        const rightScale = out.scales.data[row] === expected.scales[0]
        return rightScale && sameNumbers(rowBytes(out.values, row), expected.values)
      }),
  })
}

/** From scales of groups, packed or not, or of whole rows. */
export function dequantizeGroupsOf(scalesAre: 'f32' | 'packed' | 'per-token'): Operation {
  const bytesAs = { f32: 'fp8', packed: 'fp8Packed', 'per-token': 'fp8PerToken' } as const
  return async (context, scope) => {
    const matrices = new Matrices(context, scope)
    const { tokens, hidden } = matrices
    const size = scalesAre === 'per-token' ? hidden : groupSize
    const groups = numGroupsOf(hidden, size)
    const allocateScales = () =>
      scalesAre === 'packed'
        ? matrices.random('scales', [tokens, Math.ceil(groups / 4)], 'i32', patterns.exponent)
        : matrices.random('scales', [tokens, groups], 'f32', patterns.scale)
    return prepareLocal(context, scope, {
      ...{ bytes: quantizeBytes({ rows: tokens, hidden }, bytesAs[scalesAre]), rule: rules.dequantize },
      allocate: () => ({ values: matrices.codes('fp8e4m3'), scales: allocateScales(), out: matrices.out('bf16') }),
      enqueue: ({ values, scales, out }, stream) =>
        dequantizePerTokenGroup(values, scales, { groupSize: size, out, stream }),
      check: ({ values, scales, out }) =>
        wrongRow(tokens, (row) => {
          const stored = rowElements(scales, row)
          const numbers = scalesAre === 'packed' ? reference.unpackScales(stored, groups) : stored
          const options = { hidden, groupSize: size, dtype: 'bf16' } as const
          const expected = reference.dequantizePerTokenGroup(rowBytes(values, row), numbers, options)
          return sameNumbers(rowElements(out, row), expected as Uint16Array)
        }),
    })
  }
}
