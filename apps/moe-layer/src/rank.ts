import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { MoeEpError } from '@moe-ep/core'
import { connect, type ProcessGroup } from '@moe-ep/transport'
import { checkOutput } from './layer/check-output.js'
import { LayerRun } from './layer/layer-run.js'
import { type RunSpec, runSpecVariable } from './layer/run-spec.js'
import { StageRecorder } from './layer/stage-recorder.js'
import { countSelections } from './report/expert-selections.js'
import { encodeRankReport, type RankFailure, type RankResult, type Span } from './results/rank-result.js'

/** One rank of a run: what the launcher starts, as a process or as a worker thread. */
async function runRank(spec: RunSpec, group: ProcessGroup): Promise<RankResult> {
  const { options } = spec
  const recorder = new StageRecorder()
  const run = await LayerRun.create(spec, group, recorder)
  const collectGarbage = options.collectGarbage ? garbageCollector() : undefined
  recorder.start()
  try {
    const passes: Span[][] = []
    let first: Float32Array | undefined
    let deterministic = true
    // The first pass warms up caches, pages and engines.
    for (let pass = -1; pass < options.iters; pass++) {
      const { output, spans } = await run.pass()
      const recorded = [...recorder.takePass(), ...spans]
      if (pass >= 0) passes.push(recorded)
      const values = output.toNumbers() as Float32Array
      first ??= values
      deterministic &&= sameBits(first, values)
      collectGarbage?.()
    }
    const error = await checkOutput(spec, run.x, run.choice, first!)
    await group.barrier()
    const numTokens = options.tokens[group.rank]!
    const traffic = {
      sentRows: run.sentRows(),
      expertSelections: countSelections(run.choice.topkIdx, spec.shape.experts),
    }
    return { rank: group.rank, numTokens, ...traffic, passes, maxRelError: error, deterministic }
  } finally {
    recorder.stop()
    await run.close()
  }
}

/** Node's `gc`, also where ranks are worker threads: those cannot be started with --expose-gc. */
function garbageCollector(): () => void {
  setFlagsFromString('--expose-gc')
  return runInNewContext('gc') as () => void
}

function sameBits(a: Float32Array, b: Float32Array): boolean {
  return Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength))
}

async function main(): Promise<void> {
  const spec = JSON.parse(process.env[runSpecVariable] ?? 'null') as RunSpec
  const rank = Number(process.env['RANK'])
  const leave = (result: RankResult | RankFailure): Promise<void> =>
    writeFile(join(spec.results, `rank-${rank}.json`), encodeRankReport(result))
  let group: ProcessGroup | undefined
  try {
    group = await connect({ timeoutMs: spec.options.timeoutMs })
    await leave(await runRank(spec, group))
  } catch (error) {
    const { code, message } = MoeEpError.from(error)
    // The others must not wait for a rank that has given up.
    group?.abort(MoeEpError.from(error))
    await leave({ rank, error: { code, message } })
    process.exitCode = 1
  } finally {
    await group?.close()
  }
}

await main()
