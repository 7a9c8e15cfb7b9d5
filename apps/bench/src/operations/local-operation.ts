import type { Stream } from '@moe-ep/core'
import { inHostMemory } from '../measure/host-copies.js'
import { localCase } from '../measure/local-case.js'
import { setsOf } from '../measure/rotation.js'
import type { Scope } from '../measure/scope.js'
import { yardsticksOf } from '../measure/yardsticks.js'
import type { BenchContext, Prepared } from './operation.js'

/** An operation of one rank: what it works on, what it enqueues, and how its results are checked. */
export interface LocalOperation<Buffers, Results> {
  readonly rule: string
  readonly bytes: number
  /** One set of inputs and outputs; all sets hold the same values. */
  allocate(): Buffers
  /** Gives what the operation itself allocates, where the check looks at that. */
  enqueue(buffers: Buffers, stream: Stream): Results
  /** Looks at the set that was used last, in the host's memory; says what is wrong. */
  check(buffers: Buffers, results: Results): string | undefined
}

/** Measures an operation of one rank on sets of buffers that take turns, against copies of as many bytes. */
export async function prepareLocal<Buffers, Results>(
  context: BenchContext,
  scope: Scope,
  operation: LocalOperation<Buffers, Results>,
): Promise<Prepared> {
  const { stopwatch, device } = context
  const { bytes, rule } = operation
  const sets = Array.from({ length: setsOf(device, bytes) }, () => operation.allocate())
  let last: { readonly buffers: Buffers; readonly results: Results } | undefined
  const subject = await localCase(context, scope, {
    ...{ name: 'operation', sets: sets.length, bytes },
    enqueue(set) {
      const buffers = sets[set]!
      last = { buffers, results: operation.enqueue(buffers, stopwatch.stream) }
    },
  })
  return {
    ...{ bytes, rule, subject },
    ...(await yardsticksOf(context, scope, bytes)),
    async check() {
      const { buffers, results } = await inHostMemory(context, scope, last!)
      return operation.check(buffers, results)
    },
  }
}
