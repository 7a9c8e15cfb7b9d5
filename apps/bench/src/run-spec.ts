import type { BenchOptions } from './command/bench-options.js'

/** What a rank gets to know, through one environment variable. */
export interface RunSpec {
  readonly options: BenchOptions
  /** Folder where each rank leaves its result. */
  readonly folder: string
}

export const runSpecVariable = 'MOE_EP_BENCH_RUN'
