import { finished } from 'node:stream/promises'
import { Worker } from 'node:worker_threads'
import type { LaunchSettings } from './launch-options.js'
import type { RankResult } from './launch-result.js'
import { OutputCollector } from './output.js'
import type { RunningRank } from './running-rank.js'

/** Starts a rank as a worker thread of this process. */
export function startThreadRank(rank: number, settings: LaunchSettings, environment: NodeJS.ProcessEnv): RunningRank {
  const { output, script, args, execArgv } = settings
  const captured = output !== 'inherit'
  const worker = new Worker(script, {
    env: environment,
    argv: [...args],
    ...(execArgv ? { execArgv: [...execArgv] } : {}),
    stdout: captured,
    stderr: captured,
    name: `moe-ep rank ${rank}`,
  })
  const collector = new OutputCollector(rank, output)
  if (captured) {
    collector.follow('stdout', worker.stdout)
    collector.follow('stderr', worker.stderr)
  }
  const ended = new Promise<RankResult>((resolve) => {
    let error: Error | undefined
    worker.once('error', (thrown: unknown) => {
      error = thrown instanceof Error ? thrown : new Error(String(thrown))
      // Node prints the exception that ends a process, but not the one that ends a worker.
      for (const line of (error.stack ?? error.message).split('\n')) collector.write('stderr', line)
    })
    worker.once('exit', (exitCode) => {
      const end = { rank, exitCode, signal: null, ...(error ? { error } : {}) }
      // The last output of a thread comes through after its end.
      const drained = captured ? [worker.stdout, worker.stderr].map((stream) => finished(stream)) : []
      void Promise.allSettled(drained).then(() => resolve({ ...end, ...collector.finish() }))
    })
  })
  return { rank, ended, signal: () => void worker.terminate() }
}
