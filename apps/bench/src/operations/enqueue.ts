import { bf16ToF32Array } from '@moe-ep/core'
import { quantizePerTokenGroup, reference } from '@moe-ep/quant'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { sameNumbers } from '../workload/sample-rows.js'
import type { BenchContext, Operation } from './operation.js'

const callsPerIteration = 1000

/** JavaScript time of one call while the stream stands still: nothing else competes for the core. */
function perCall({ stopwatch }: BenchContext, call: () => void): (iteration: number) => Promise<number> {
  return async () => {
    const { hostUs } = await stopwatch.time(() => {
      for (let i = 0; i < callsPerIteration; i++) call()
    })
    return hostUs / callsPerIteration
  }
}

/** A command without work, arguments to check or tensors. */
export const enqueueEmpty: Operation = async (context) => ({
  ...{ bytes: 0, ceilings: [] },
  rule: `JavaScript time of one of ${callsPerIteration} calls in a row: a pause of no length`,
  subject: { name: 'empty', sets: 1, time: perCall(context, () => context.stopwatch.stream.delay(0)) },
  check: () => undefined,
})

/** A whole operation on next to no data: argument checks, tracing, the native call, and tensors kept alive. */
export const enqueueOperation: Operation = async (context, scope) => {
  const { stopwatch, options, group } = context
  const hidden = 128
  const x = scope.zeros([1, hidden], 'bf16')
  fillRandom(x, randomKey(options.seed, 'enqueue', group.rank), patterns.bf16)
  const out = { values: scope.zeros([1, hidden], 'fp8e4m3'), scales: scope.zeros([1, 1], 'f32') }
  const { stream } = stopwatch
  return {
    ...{ bytes: 0, ceilings: [] },
    rule: `JavaScript time of one of ${callsPerIteration} calls in a row: quantise one row of ${hidden} into given tensors`,
    subject: { name: 'operation', sets: 1, time: perCall(context, () => quantizePerTokenGroup(x, { out, stream })) },
    check() {
      const values = bf16ToF32Array(x.data as Uint16Array)
      const expected = reference.quantizePerTokenGroup(values, { hidden, groupSize: hidden, numerics: 'vllm' })
      return sameNumbers(out.values.data as Uint8Array, expected.values)
        ? undefined
        : 'the row differs from the reference'
    },
  }
}
