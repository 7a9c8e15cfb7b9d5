import { cpus, totalmem } from 'node:os'
import type { BenchOptions, LaunchKind } from '../command/bench-options.js'
import { lastLevelCacheBytes } from '../measure/rotation.js'
import { percentile, slowestRank } from '../measure/statistics.js'
import type { RankMeasurement, RankSuccess } from './rank-measurement.js'

/** One line of the report: times of the slowest rank, bytes of the busiest one. */
export interface OperationResult {
  readonly name: string
  readonly ok: boolean
  readonly error?: string
  readonly medianUs: number
  readonly p99Us: number
  /** Read and written as `rule` says; 0 where only the latency counts. */
  readonly bytes: number
  readonly wireBytes?: number
  readonly logicalBytes?: number
  readonly gbPerSec: number
  /** Name of the fastest way that the same bytes were moved; null where there are none. */
  readonly ceiling: string | null
  readonly ceilingUs: number | null
  readonly ceilingGbPerSec: number | null
  /** ceilingUs / medianUs: 1 is as fast as the ceiling. */
  readonly ratio: number | null
  /** All ways that the same bytes were moved, the fastest first. */
  readonly ceilings: readonly Ceiling[]
  /** One of many empty kernels in a row, for operations on cuda that have so few bytes that there is no ceiling. */
  readonly emptyLaunchUs?: number
  readonly rule: string
}

/** One way that the bytes of an operation were moved. */
export interface Ceiling {
  readonly name: string
  readonly medianUs: number
  /** Of this one and the operation, as the operation's own. */
  readonly ratio: number
}

/** What `--json` prints. */
export interface BenchResult {
  readonly ok: boolean
  readonly device: string
  /** Name of the first rank's GPU. */
  readonly gpu?: string
  readonly launch: LaunchKind
  readonly world: number
  readonly machine: {
    readonly cores: number
    readonly model: string
    readonly memoryBytes: number
    readonly lastLevelCacheBytes: number
    readonly node: string
  }
  readonly config: BenchOptions
  readonly results: readonly OperationResult[]
}

export function summarizeBench(config: BenchOptions, ranks: readonly RankSuccess[]): BenchResult {
  const results = config.ops.map((_, index) =>
    summarizeOperation(ranks.map(({ measurements }) => measurements[index]!)),
  )
  const cores = cpus()
  const gpu = ranks[0]?.gpu
  return {
    ok: results.every(({ ok }) => ok),
    device: config.device,
    ...(gpu !== undefined && { gpu }),
    ...{ launch: config.launch, world: config.world },
    machine: {
      cores: cores.length,
      model: cores[0]?.model.trim() ?? 'unknown',
      memoryBytes: totalmem(),
      lastLevelCacheBytes: lastLevelCacheBytes(),
      node: process.version,
    },
    config,
    results,
  }
}

/** One operation, `measurements[rank]`. */
export function summarizeOperation(measurements: readonly RankMeasurement[]): OperationResult {
  const { name, rule, ceilings } = measurements[0]!
  const samples = slowestRank(measurements.map((one) => one.samples))
  const medianUs = percentile(samples, 50)
  const bytes = busiest(measurements, 'bytes') ?? 0
  const wireBytes = busiest(measurements, 'wireBytes')
  const logicalBytes = busiest(measurements, 'logicalBytes')
  const medians = ceilings.map((ceiling, index) => {
    const ofRanks = measurements.map((one) => one.ceilings[index]?.samples ?? [])
    const ceilingUs = percentile(slowestRank(ofRanks), 50)
    return { name: ceiling.name, medianUs: ceilingUs, ratio: ceilingUs / medianUs }
  })
  const sorted = medians.sort((a, b) => a.medianUs - b.medianUs)
  const [fastest] = sorted
  const floors = measurements.flatMap(({ floor }) => (floor === undefined ? [] : [floor]))
  const errors = measurements.flatMap(({ error }, rank) => (error === undefined ? [] : `rank ${rank}: ${error}`))
  return {
    ...{ name, ok: errors.length === 0, ...(errors.length > 0 && { error: errors.join('; ') }) },
    ...{ medianUs, p99Us: percentile(samples, 99), bytes },
    ...(wireBytes !== undefined && { wireBytes }),
    ...(logicalBytes !== undefined && { logicalBytes }),
    gbPerSec: bytes / medianUs / 1000,
    ceiling: fastest?.name ?? null,
    ceilingUs: fastest?.medianUs ?? null,
    ceilingGbPerSec: fastest === undefined ? null : bytes / fastest.medianUs / 1000,
    ratio: fastest?.ratio ?? null,
    ceilings: sorted,
    ...(floors.length > 0 && { emptyLaunchUs: percentile(slowestRank(floors), 50) }),
    rule,
  }
}

function busiest(
  measurements: readonly RankMeasurement[],
  field: 'bytes' | 'wireBytes' | 'logicalBytes',
): number | undefined {
  const values = measurements.flatMap((one) => one[field] ?? [])
  return values.length === 0 ? undefined : Math.max(...values)
}
