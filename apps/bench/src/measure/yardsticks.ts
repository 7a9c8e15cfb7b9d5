import type { BenchContext } from '../operations/operation.js'
import { copyCeilings } from './copy-ceilings.js'
import { deviceCopyCeilings } from './device-copy-ceilings.js'
import { localCase } from './local-case.js'
import type { Scope } from './scope.js'
import type { TimedCase } from './timed-case.js'

/** What the time of an operation of one rank is compared with. */
export interface Yardsticks {
  readonly ceilings: readonly TimedCase[]
  /** An empty kernel instead, where bytes are so few that a launch is what counts. */
  readonly floor?: TimedCase
}

/** With fewer bytes a copy on a GPU measures its launch, not its memory. */
const fewBytes = 1e6

export async function yardsticksOf(context: BenchContext, scope: Scope, bytes: number): Promise<Yardsticks> {
  if (context.device.kind === 'cpu') return { ceilings: await copyCeilings(context, scope, bytes) }
  if (bytes >= fewBytes) return { ceilings: await deviceCopyCeilings(context, scope, bytes) }
  const { stream } = context.stopwatch
  const pause = { name: 'empty launch', sets: 1, bytes: 0, enqueue: () => stream.delay(0) }
  return { ceilings: [], floor: await localCase(context, scope, pause) }
}
