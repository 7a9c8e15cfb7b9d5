import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { assertLaunched, launch } from 'moe-ep'
import { type BenchResult, summarizeBench } from '../results/bench-result.js'
import type { RankFailure, RankSuccess } from '../results/rank-measurement.js'
import { type RunSpec, runSpecVariable } from '../run-spec.js'
import type { BenchOptions } from './bench-options.js'

/**
 * Starts the ranks, waits for them and puts their measurements together.
 * @throws the error of the first rank that told one; ERR_MOE_EP_LAUNCH when a rank ended without a word.
 */
export async function runBench(options: BenchOptions): Promise<BenchResult> {
  const folder = await mkdtemp(join(tmpdir(), 'moe-ep-bench-'))
  try {
    const spec: RunSpec = { options, folder }
    const launched = await launch({
      ranks: options.ranks,
      script: new URL('rank.js', import.meta.url),
      environment: { [runSpecVariable]: JSON.stringify(spec) },
      // Standard output belongs to the result.
      output: (rank, _stream, line) => process.stderr.write(`[${rank}] ${line}\n`),
    })
    const reports = await Promise.all(launched.ranks.map(({ rank }) => readReport(folder, rank)))
    const died = launched.ranks.some(({ rank, signal }) => signal !== null && reports[rank] === undefined)
    const failure = reports.find((report) => report !== undefined && 'error' in report)
    if (failure !== undefined && !died) {
      const { code, message } = failure.error
      throw MoeEpError.from(Object.assign(new Error(`rank ${failure.rank}: ${message}`), { code }))
    }
    assertLaunched(launched)
    return summarizeBench(options, reports as RankSuccess[])
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

async function readReport(folder: string, rank: number): Promise<RankSuccess | RankFailure | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, `rank-${rank}.json`), 'utf8')) as RankSuccess | RankFailure
  } catch {
    return undefined
  }
}
