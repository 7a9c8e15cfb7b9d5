import { Event } from '@moe-ep/core'
import type { BenchContext } from '../operations/operation.js'
import type { TimedCase } from './timed-case.js'

/** Rounds of steps that follow one another in a cuda stream: what it takes to start the first one is as much as a step itself. */
const rounds = 8
/** How long the stream stands still while they are enqueued: one host that is late once would be in the times of all ranks. */
const gateUs = 8000

/** What ranks do in steps, of which one is timed. */
export interface StepWork {
  readonly name: string
  /** Sets of buffers that take turns. */
  readonly sets: number
  /** Which step is timed. */
  readonly timed: number
  /** The steps of a round, each of which enqueues its work; they run in order, those of the next round behind them. */
  steps(round: number): readonly (() => unknown)[]
}

/**
 * A step is timed where it stands among the others. On cuda many rounds follow one another and the time is the mean, by events before
 * and behind each of these steps; on the cpu, whose ranks share cores, what comes before has ended on all of them.
 */
export function stepCase({ device, stopwatch }: BenchContext, { name, sets, timed, steps }: StepWork): TimedCase {
  const { stream } = stopwatch
  if (device.kind === 'cpu') {
    let left: readonly (() => unknown)[] = []
    return {
      ...{ name, sets },
      async prepare(iteration) {
        const all = steps(iteration)
        for (const step of all.slice(0, timed)) step()
        await stream.synchronize()
        left = all.slice(timed)
      },
      async time() {
        const [step, ...others] = left
        const { streamUs } = await stopwatch.time(step!)
        for (const other of others) other()
        await stream.synchronize()
        return streamUs
      },
    }
  }
  const edges = Array.from({ length: rounds }, () => ({ begin: new Event(device), end: new Event(device) }))
  return {
    ...{ name, sets },
    async time(iteration) {
      await stopwatch.time(() => {
        for (const [round, { begin, end }] of edges.entries()) {
          for (const [index, step] of steps(iteration + round).entries()) {
            if (index === timed) stream.record(begin)
            step()
            if (index === timed) stream.record(end)
          }
        }
      }, gateUs)
      const spans = edges.map(({ begin, end }) => end.completedAtUs - begin.completedAtUs)
      return spans.reduce((sum, span) => sum + span, 0) / rounds
    },
  }
}

/** What a step that does nothing takes on cuda: events and the start of a kernel, which are part of every step's time. */
export function emptyStep(context: BenchContext): { readonly floor?: TimedCase } {
  const { device, stopwatch } = context
  if (device.kind === 'cpu') return {}
  const pause = (): void => stopwatch.stream.delay(0)
  return { floor: stepCase(context, { name: 'empty step', sets: 1, timed: 1, steps: () => [pause, pause] }) }
}
