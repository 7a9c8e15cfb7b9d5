/** Nearest-rank percentile: the smallest value that is not below `percent` percent of all. NaN for no values. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil((percent / 100) * sorted.length) - 1)] ?? NaN
}

/** For every iteration the time of the slowest rank: `samples[rank][iteration]`. Ranks have equally many iterations. */
export function slowestRank(samples: readonly (readonly number[])[]): number[] {
  const [first = []] = samples
  return first.map((_, iteration) => Math.max(...samples.map((ofRank) => ofRank[iteration]!)))
}
