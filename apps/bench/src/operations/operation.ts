import type { Device } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import type { BenchOptions } from '../command/bench-options.js'
import type { Scope } from '../measure/scope.js'
import type { Stopwatch } from '../measure/stopwatch.js'
import type { TimedCase } from '../measure/timed-case.js'
import type { Yardsticks } from '../measure/yardsticks.js'
import type { Routing } from '../workload/routing.js'

/** What every operation of a run is measured with. */
export interface BenchContext {
  readonly options: BenchOptions
  readonly group: ProcessGroup
  /** A world of this rank alone. */
  readonly solo: ProcessGroup
  readonly device: Device
  readonly stopwatch: Stopwatch
  readonly routing: Routing
}

/** An operation with its inputs in place. */
export interface Prepared extends Yardsticks {
  readonly subject: TimedCase
  /** How `bytes` are counted, or what one iteration is where none are. */
  readonly rule: string
  readonly bytes: number
  readonly wireBytes?: number
  readonly logicalBytes?: number
  /** Iterations that are prepared together. @default 1 */
  readonly block?: number
  /** Looks at the results of the last iteration; says what is wrong. */
  check(): string | undefined | Promise<string | undefined>
}

/** Prepares an operation; collective. What it allocates belongs to the scope. */
export type Operation = (context: BenchContext, scope: Scope) => Promise<Prepared>
