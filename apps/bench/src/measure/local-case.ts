import { Graph, Plan, type Stream } from '@moe-ep/core'
import type { LaunchKind } from '../command/bench-options.js'
import type { BenchContext } from '../operations/operation.js'
import { awaitFills } from '../workload/device-words.js'
import { callsOf } from './rotation.js'
import type { Scope } from './scope.js'
import { streamCase, type TimedCase } from './timed-case.js'

/** Calls of one rank that are timed again and again. */
export interface LocalWork {
  readonly name: string
  /** Sets of buffers that take turns. */
  readonly sets: number
  /** Read and written by one call: says how many calls make a span that is long enough. */
  readonly bytes: number
  enqueue(set: number): void
}

const longestGateUs = 50_000

/** On the cpu an iteration is one call; on cuda it is many, launched together, and its time that of one of them. */
export async function localCase(context: BenchContext, scope: Scope, work: LocalWork): Promise<TimedCase> {
  const { device, stopwatch, options } = context
  const { name, sets, bytes, enqueue } = work
  if (device.kind === 'cpu') return streamCase({ name, stopwatch, sets, enqueue })
  const { stream } = stopwatch
  await awaitFills(device)
  // What a first call loads or allocates is no part of a capture, and what it complains of is told at once.
  enqueue(0)
  await stream.synchronize()
  const calls = callsOf({ bytes, sets }, options.launch)
  const launch = launchOf(options.launch, stream, scope, () => {
    for (let call = 0; call < calls; call++) enqueue(call % sets)
  })
  let gateUs = 2000
  return {
    ...{ name, sets: 1 },
    async time() {
      const { streamUs, hostUs } = await stopwatch.time(launch, gateUs)
      gateUs = Math.min(longestGateUs, 100 + 2 * hostUs)
      return streamUs / calls
    },
  }
}

/** Once prepared, launches all that `body` enqueues. */
function launchOf(kind: LaunchKind, stream: Stream, scope: Scope, body: () => void): () => void {
  if (kind === 'eager') return body
  const prepared = scope.own(kind === 'graph' ? Graph.capture(stream, body) : Plan.of(stream, body))
  return () => prepared.launch(stream)
}
