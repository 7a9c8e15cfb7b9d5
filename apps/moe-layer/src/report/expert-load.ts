import { expertRangeOfRank } from '../routing/placement.js'
import type { ReportData } from './report-data.js'

/** How many slots chose each expert, and how evenly. */
export interface ExpertLoad {
  /** Selections of each expert by the tokens of all ranks. */
  readonly selections: readonly number[]
  /** Experts of each rank, half open. */
  readonly owners: readonly {
    readonly rank: number
    readonly begin: number
    readonly end: number
    readonly selections: number
  }[]
  readonly total: number
  readonly mean: number
  /** Expert with the most selections; the first of equals. */
  readonly busiest: number
  /** Experts that no token chose. */
  readonly idle: number
  /** Largest over mean; undefined when there is nothing to compare. */
  readonly imbalance: number | undefined
  /** The same over the ranks that own experts. */
  readonly rankImbalance: number | undefined
}

export function expertLoad({ result, ranks }: Pick<ReportData, 'result' | 'ranks'>): ExpertLoad {
  const { experts } = result
  const selections = Array.from({ length: experts }, (_, expert) =>
    ranks.reduce((sum, { expertSelections }) => sum + (expertSelections[expert] ?? 0), 0),
  )
  const owners = ranks.map(({ rank }) => {
    const { begin, end } = expertRangeOfRank({ experts, ranks: ranks.length, rank })
    return { rank, begin, end, selections: sum(selections.slice(begin, end)) }
  })
  const total = sum(selections)
  const owned = owners.filter(({ begin, end }) => end > begin).map((owner) => owner.selections)
  return {
    ...{ selections, owners, total, mean: total / experts },
    busiest: selections.indexOf(Math.max(...selections)),
    idle: selections.filter((count) => count === 0).length,
    imbalance: maxOverMean(selections),
    rankImbalance: maxOverMean(owned),
  }
}

function maxOverMean(values: readonly number[]): number | undefined {
  const total = sum(values)
  return total === 0 ? undefined : (Math.max(...values) * values.length) / total
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0)
}
