import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { launch, type LaunchResult } from 'moe-ep'
import { runSpecVariable, type RunSpec } from '../layer/run-spec.js'
import { reportData } from '../report/report-data.js'
import { prepareReportFile, writeReport } from '../report/report-file.js'
import { chromeTrace } from '../results/chrome-trace.js'
import { type LayerResult, summarizeLayer } from '../results/layer-result.js'
import type { RankFailure, RankResult } from '../results/rank-result.js'
import { configError, type LayerOptions } from './layer-options.js'
import { resolveModel } from './resolve-model.js'

/**
 * Starts the ranks, waits for them and puts their results together.
 * @throws the first rank's own error where there is one; ERR_MOE_EP_LAUNCH when a rank ended without a word.
 */
export async function runLayer(options: LayerOptions): Promise<LayerResult> {
  if (options.trace !== undefined) await requireWritable('trace', options.trace)
  const report = options.report === undefined ? undefined : await prepareReportFile(options.report)
  const model = await resolveModel(options)
  const results = await mkdtemp(join(tmpdir(), 'moe-layer-'))
  try {
    const spec: RunSpec = { options, ...model, results }
    const launched = await launch({
      ...{
        ranks: options.ranks,
        script: new URL('rank.js', import.meta.url),
        mode: options.workers ? 'thread' : 'process',
      },
      environment: { [runSpecVariable]: JSON.stringify(spec) },
      // Standard output belongs to the result.
      output: (rank, _stream, line) => process.stderr.write(`[${rank}] ${line}\n`),
    })
    const ranks = await Promise.all(launched.ranks.map(({ rank }) => readResult(results, rank)))
    if (!launched.ok) throw failureOf(launched, ranks)
    const finished = ranks as RankResult[]
    if (options.trace !== undefined) await writeFile(options.trace, chromeTrace(finished))
    const result = summarizeLayer(spec, finished)
    if (report !== undefined) {
      await writeReport(report, reportData(spec, finished, result))
      process.stderr.write(`report: ${report}\n`)
    }
    return result
  } finally {
    await rm(results, { recursive: true, force: true })
  }
}

/** A long run must not end with the news that its timeline has no place. */
async function requireWritable(flag: string, path: string): Promise<void> {
  try {
    const file = await open(path, 'a')
    await file.close()
  } catch (error) {
    throw configError(flag, 'a file that can be written', `${path} (${(error as Error).message})`)
  }
}

async function readResult(folder: string, rank: number): Promise<RankResult | RankFailure | undefined> {
  try {
    return JSON.parse(await readFile(join(folder, `rank-${rank}.json`), 'utf8')) as RankResult | RankFailure
  } catch {
    return undefined
  }
}

/** A rank that died says nothing, and what the others say is its consequence: it comes first. */
function failureOf(launched: LaunchResult, ranks: readonly (RankResult | RankFailure | undefined)[]): MoeEpError {
  const reports = ranks.filter((rank): rank is RankFailure => rank !== undefined && 'error' in rank)
  const others = reports.map(({ rank, error }) => `rank ${rank}: ${error.code}: ${error.message}`)
  const { firstFailure, stoppedBy } = launched
  if (stoppedBy !== undefined) return new MoeEpError('ERR_MOE_EP_ABORTED', `the run was stopped by ${stoppedBy}`)
  const isSilent = ({ rank, signal }: LaunchResult['ranks'][number]): boolean =>
    signal !== null && ranks[rank] === undefined
  // Ranks that had to be ended after the first failure are silent, too, but nobody died of their silence.
  const isLost = reports.some(({ error }) => error.code === 'ERR_MOE_EP_PEER_LOST')
  const dead =
    firstFailure !== undefined && isSilent(firstFailure)
      ? firstFailure
      : isLost
        ? launched.ranks.find(isSilent)
        : undefined
  if (dead === undefined && reports[0] !== undefined) {
    const { code, message } = reports[0].error
    return MoeEpError.from(Object.assign(new Error(message), { code }))
  }
  const first = dead ?? firstFailure
  const how =
    first === undefined
      ? 'a rank failed'
      : `rank ${first.rank} ended by ${first.signal ?? `exit code ${first.exitCode}`}`
  return new MoeEpError('ERR_MOE_EP_LAUNCH', [how, ...others].join('\n'))
}
