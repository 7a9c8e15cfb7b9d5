import { bf16ToF32Array, type Tensor } from '@moe-ep/core'
import { dequantizePerTokenGroup, numGroupsOf, quantizePerTokenGroup, reference } from '@moe-ep/quant'
import { quantizeBytes, rules } from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { rotatingSets } from '../measure/rotation.js'
import type { Scope } from '../measure/scope.js'
import { streamCase } from '../measure/timed-case.js'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import type { BenchContext, Operation } from './operation.js'

interface MatrixSet {
  readonly x: Tensor
  readonly values: Tensor
  readonly scales: Tensor
}

const groupSize = 128

/** Sets of a bf16 matrix and its quantised form; which one is input and which one output is the caller's. */
function matrixSets({ options }: BenchContext, scope: Scope, bytes: number): MatrixSet[] {
  const { tokens, hidden } = options
  return Array.from({ length: rotatingSets(bytes) }, () => ({
    x: scope.zeros([tokens, hidden], 'bf16'),
    values: scope.zeros([tokens, hidden], 'fp8e4m3'),
    scales: scope.zeros([tokens, numGroupsOf(hidden)], 'f32'),
  }))
}

export const quantize: Operation = async (context, scope) => {
  const { options, group, stopwatch } = context
  const { tokens, hidden } = options
  const bytes = quantizeBytes({ rows: tokens, hidden })
  const sets = matrixSets(context, scope, bytes)
  for (const { x } of sets) fillRandom(x, randomKey(options.seed, 'x', group.rank), patterns.bf16)
  let last = sets[0]!
  return {
    ...{ bytes, rule: rules.quantize, ceilings: await copyCeilings(context, scope, bytes) },
    subject: streamCase({
      ...{ name: 'quantize', stopwatch, sets: sets.length },
      enqueue(set) {
        last = sets[set]!
        quantizePerTokenGroup(last.x, { out: last, stream: stopwatch.stream })
      },
    }),
    check() {
      const wrong = sampleRows(tokens).find((row) => {
        const x = bf16ToF32Array(last.x.slice(row, row + 1).data as Uint16Array)
        const expected = reference.quantizePerTokenGroup(x, { hidden, groupSize, numerics: 'vllm' })
        const values = last.values.slice(row, row + 1).data as Uint8Array
        const scales = last.scales.slice(row, row + 1).data as Float32Array
        return !sameNumbers(values, expected.values) || !sameNumbers(scales, expected.scales)
      })
      return wrong === undefined ? undefined : `row ${wrong} differs from the reference`
    },
  }
}

export const dequantize: Operation = async (context, scope) => {
  const { options, group, stopwatch } = context
  const { tokens, hidden } = options
  const bytes = quantizeBytes({ rows: tokens, hidden })
  const sets = matrixSets(context, scope, bytes)
  for (const { values, scales } of sets) {
    fillRandom(values, randomKey(options.seed, 'values', group.rank), patterns.fp8)
    fillRandom(scales, randomKey(options.seed, 'scales', group.rank), patterns.scale)
  }
  let last = sets[0]!
  return {
    ...{ bytes, rule: rules.dequantize, ceilings: await copyCeilings(context, scope, bytes) },
    subject: streamCase({
      ...{ name: 'dequantize', stopwatch, sets: sets.length },
      enqueue(set) {
        last = sets[set]!
        dequantizePerTokenGroup(last.values, last.scales, { out: last.x, stream: stopwatch.stream })
      },
    }),
    check() {
      const wrong = sampleRows(tokens).find((row) => {
        const values = last.values.slice(row, row + 1).data as Uint8Array
        const scales = last.scales.slice(row, row + 1).data as Float32Array
        const expected = reference.dequantizePerTokenGroup(values, scales, { hidden, groupSize, dtype: 'bf16' })
        return !sameNumbers(last.x.slice(row, row + 1).data as Uint16Array, expected as Uint16Array)
      })
      return wrong === undefined ? undefined : `row ${wrong} differs from the reference`
    },
  }
}
