import { availableParallelism, cpus } from 'node:os'
import type { RunSpec } from '../layer/run-spec.js'
import type { LayerResult } from '../results/layer-result.js'
import type { RankResult } from '../results/rank-result.js'

/** Everything that the report shows. */
export interface ReportData {
  readonly result: LayerResult
  /** One entry a rank, in order. */
  readonly ranks: readonly RankResult[]
  readonly routing: string
  readonly seed: number
  readonly workers: boolean
  /** Processor and runtime, for a person. */
  readonly machine: string
  /** When the run ended, ISO 8601. */
  readonly createdAt: string
}

/** Puts the report's data together from a finished run. */
export function reportData(spec: RunSpec, ranks: readonly RankResult[], result: LayerResult): ReportData {
  const { routing, seed, workers } = spec.options
  const processor = cpus()[0]?.model.trim() ?? process.arch
  const machine = `${processor}, ${availableParallelism()} cores, Node ${process.versions.node}`
  return { result, ranks, routing, seed, workers, machine, createdAt: new Date().toISOString() }
}
