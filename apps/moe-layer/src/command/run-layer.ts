import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { launch, type LaunchResult } from 'moe-ep'
import { runSpecVariable, type RunSpec } from '../layer/run-spec.js'
import { chromeTrace } from '../results/chrome-trace.js'
import { type LayerResult, summarizeLayer } from '../results/layer-result.js'
import type { RankFailure, RankResult } from '../results/rank-result.js'
import type { LayerOptions } from './layer-options.js'
import { resolveModel } from './resolve-model.js'

/**
 * Starts the ranks, waits for them and puts their results together.
 * @throws the first rank's own error where there is one; ERR_MOE_EP_LAUNCH when a rank ended without a word.
 */
export async function runLayer(options: LayerOptions): Promise<LayerResult> {
  const { shape, weights } = await resolveModel(options)
  const results = await mkdtemp(join(tmpdir(), 'moe-layer-'))
  try {
    const spec: RunSpec = { options, shape, weights, results }
    const launched = await launch({
      ...{ ranks: options.ranks, script: new URL('rank.js', import.meta.url), mode: options.workers ? 'thread' : 'process' },
      environment: { [runSpecVariable]: JSON.stringify(spec) },
      // Standard output belongs to the result.
      output: (rank, _stream, line) => process.stderr.write(`[${rank}] ${line}\n`),
      ...(options.collectGarbage && !options.workers && { execArgv: ['--expose-gc'] }),
    })
    const ranks = await Promise.all(launched.ranks.map(({ rank }) => readResult(results, rank)))
    if (!launched.ok) throw failureOf(launched, ranks)
    const finished = ranks as RankResult[]
    if (options.trace !== undefined) await writeFile(options.trace, chromeTrace(finished))
    return summarizeLayer(spec, finished)
  } finally {
    await rm(results, { recursive: true, force: true })
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
  const dead = launched.ranks.find(({ rank, signal }) => signal !== null && ranks[rank] === undefined)
  if (dead === undefined && reports[0] !== undefined) {
    const { code, message } = reports[0].error
    return MoeEpError.from(Object.assign(new Error(message), { code }))
  }
  const first = dead ?? launched.firstFailure
  const how = first === undefined ? 'a rank failed' : `rank ${first.rank} ended by ${first.signal ?? `exit code ${first.exitCode}`}`
  return new MoeEpError('ERR_MOE_EP_LAUNCH', [how, ...others].join('\n'))
}
