import type { TimedCase } from './timed-case.js'

/** How often cases are timed. */
export interface Repetitions {
  readonly iters: number
  /** Iterations before those, at the least. */
  readonly warmup: number
  /** Iterations that are prepared together before the first of them is timed. @default 1 */
  readonly block?: number
}

/**
 * Times all cases in turn, iteration by iteration: what slows the machine down for a while slows the subject and its ceilings
 * down alike. Gives `samples[case][iteration]`.
 */
export async function measureCases(cases: readonly TimedCase[], repetitions: Repetitions): Promise<number[][]> {
  const { iters, block = 1 } = repetitions
  const warmup = Math.max(repetitions.warmup, ...cases.map(({ sets }) => sets))
  const samples: number[][] = cases.map(() => [])
  for (let begin = 0; begin < warmup + iters; begin += block) {
    const end = Math.min(begin + block, warmup + iters)
    for (const one of cases) {
      for (let iteration = begin; iteration < end; iteration++) await one.prepare?.(iteration)
    }
    for (let iteration = begin; iteration < end; iteration++) {
      for (const [index, one] of cases.entries()) {
        const microseconds = await one.time(iteration)
        if (iteration >= warmup) samples[index]!.push(microseconds)
      }
    }
  }
  return samples
}
