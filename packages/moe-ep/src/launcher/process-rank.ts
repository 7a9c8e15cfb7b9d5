import { type ChildProcess, spawn } from 'node:child_process'
import type { LaunchSettings } from './launch-options.js'
import type { RankResult } from './launch-result.js'
import { OutputCollector } from './output.js'
import type { RunningRank } from './running-rank.js'

/** How long output may still come after a rank has ended: a process that it left behind may hold the stream open. */
const drainMs = 1_000

/**
 * What every rank process runs before its script. The channel to the launcher closes when the launcher dies,
 * however it dies: the rank then asks itself to end, and is killed when that takes more than two seconds. The
 * channel does not keep the rank alive, and processes that inherit this code from a rank but have another parent
 * are left alone.
 */
const endWithLauncher = `
  import process from 'node:process'
  if (process.env.MOE_EP_LAUNCHER === String(process.ppid) && process.channel) {
    process.on('disconnect', () => {
      setTimeout(() => process.kill(process.pid, 'SIGKILL'), 2000).unref()
      process.kill(process.pid, 'SIGTERM')
    })
    process.channel.unref()
  }
`
const preload = `data:text/javascript,${encodeURIComponent(endWithLauncher)}`

/** Starts a rank as a Node process in a process group of its own, so that its own children end with it. */
export function startProcessRank(rank: number, settings: LaunchSettings, environment: NodeJS.ProcessEnv): RunningRank {
  const { output, script, args, execArgv = process.execArgv } = settings
  const stdio = output === 'inherit' ? 'inherit' : 'pipe'
  const child = spawn(process.execPath, [...execArgv, '--import', preload, script, ...args], {
    env: { ...environment, MOE_EP_LAUNCHER: String(process.pid) },
    stdio: ['ignore', stdio, stdio, 'ipc'],
    detached: true,
  })
  const collector = new OutputCollector(rank, output)
  collector.follow('stdout', child.stdout)
  collector.follow('stderr', child.stderr)
  return { rank, ended: waitForEnd(rank, child, collector), signal: (signal) => signalGroup(child, signal) }
}

function waitForEnd(rank: number, child: ChildProcess, collector: OutputCollector): Promise<RankResult> {
  return new Promise((resolve) => {
    const finish = (end: Pick<RankResult, 'exitCode' | 'signal' | 'error'>) => {
      // Whatever the rank has left behind in its group ends with it.
      signalGroup(child, 'SIGKILL')
      child.stdout?.destroy()
      child.stderr?.destroy()
      resolve({ rank, ...end, ...collector.finish() })
    }
    child.once('error', (error) => {
      if (child.pid === undefined) finish({ exitCode: null, signal: null, error })
    })
    child.once('exit', (exitCode, signal) => {
      const timer = setTimeout(() => finish({ exitCode, signal }), drainMs)
      child.once('close', () => {
        clearTimeout(timer)
        finish({ exitCode, signal })
      })
    })
  })
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, signal)
  } catch {
    // The group has ended already.
  }
}
