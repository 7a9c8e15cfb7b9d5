import type { Stream } from '@moe-ep/core'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { rotatingSets } from '../measure/rotation.js'
import type { Scope } from '../measure/scope.js'
import { streamCase } from '../measure/timed-case.js'
import type { BenchContext, Prepared } from './operation.js'

/** An operation of one rank: what it works on, what it enqueues, and how its results are checked. */
export interface LocalOperation<Buffers> {
  readonly rule: string
  readonly bytes: number
  /** One set of inputs and outputs; all sets hold the same values. */
  allocate(): Buffers
  enqueue(buffers: Buffers, stream: Stream): unknown
  /** Looks at the set that was used last; says what is wrong. */
  check(buffers: Buffers): string | undefined
}

/** Measures an operation of one rank on sets of buffers that take turns, against copies of as many bytes. */
export async function prepareLocal<Buffers>(
  context: BenchContext,
  scope: Scope,
  operation: LocalOperation<Buffers>,
): Promise<Prepared> {
  const { stopwatch } = context
  const { bytes, rule } = operation
  const sets = Array.from({ length: rotatingSets(bytes) }, () => operation.allocate())
  let last = sets[0]!
  return {
    ...{ bytes, rule, ceilings: await copyCeilings(context, scope, bytes) },
    subject: streamCase({
      ...{ name: 'operation', stopwatch, sets: sets.length },
      enqueue(set) {
        last = sets[set]!
        operation.enqueue(last, stopwatch.stream)
      },
    }),
    check: () => operation.check(last),
  }
}
