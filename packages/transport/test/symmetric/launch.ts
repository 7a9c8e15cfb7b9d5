import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { freePort, secret } from '../rendezvous/world.js'

/** One line of JSON that a rank wrote. */
export interface RankEvent {
  readonly event: string
  readonly [key: string]: unknown
}

/** A rank in a process or in a thread of its own. */
export interface RunningRank {
  readonly pid: number | undefined
  readonly events: readonly RankEvent[]
  /** The first event of this name, also when it came already; ending without it is an error. */
  event(name: string): Promise<RankEvent>
  /** Exit code, or the signal that ended it. */
  readonly ended: Promise<number | string | null>
  /** SIGKILL for a process, terminate() for a thread. */
  kill(): void
}

/** Which script runs as which kind of ranks. */
export interface Launch {
  readonly numRanks: number
  /** `new URL('fixtures/x.mjs', import.meta.url)`: plain JavaScript that imports the built packages. */
  readonly script: URL
  readonly scenario: string
  readonly threads?: boolean
  readonly timeoutMs?: number
  readonly nodeOptions?: readonly string[]
  /** A program and its first arguments that node runs under, such as `unshare -m`. */
  readonly under?: readonly string[]
}

/** Starts all ranks of a world. */
export async function launch(options: Launch): Promise<RunningRank[]> {
  const port = await freePort()
  const { numRanks, timeoutMs = 60_000 } = options
  return Array.from({ length: numRanks }, (_, rank) =>
    (options.threads === true ? startThread : startProcess)(options, {
      ...inherited(),
      ...{ RANK: String(rank), WORLD_SIZE: String(numRanks), MOE_EP_SECRET: secret },
      ...{ MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port), MOE_EP_TIMEOUT_MS: String(timeoutMs) },
    }),
  )
}

/** Of this process's environment: what finds programs, libraries and devices. */
function inherited(): Record<string, string> {
  const names = ['PATH', 'LD_LIBRARY_PATH', 'NODE_OPTIONS', 'MOE_EP_DEVICE', 'CUDA_VISIBLE_DEVICES']
  return Object.fromEntries(names.flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])))
}

/** What each rank ended with; ends those that are left when one fails to. */
export async function endsOf(ranks: readonly RunningRank[]): Promise<(number | string | null)[]> {
  return Promise.all(ranks.map((rank) => rank.ended))
}

function startProcess(
  { script, scenario, nodeOptions = [], under = [] }: Launch,
  env: Record<string, string>,
): RunningRank {
  const command = [...under, process.execPath, ...nodeOptions, fileURLToPath(script), scenario]
  const child = spawn(command[0]!, command.slice(1), { env, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise<number | string | null>((resolve) => {
    child.once('close', (code, signal) => resolve(signal ?? code))
  })
  return running({ pid: child.pid, output: child.stdout, ended, kill: () => void child.kill('SIGKILL') })
}

function startThread({ script, scenario }: Launch, env: Record<string, string>): RunningRank {
  const worker = new Worker(script, { env, argv: [scenario], execArgv: [], stdout: true })
  const ended = new Promise<number>((resolve, reject) => {
    worker.once('exit', resolve)
    worker.once('error', reject)
  })
  return running({ pid: undefined, output: worker.stdout, ended, kill: () => void worker.terminate() })
}

function running(parts: {
  pid: number | undefined
  output: NodeJS.ReadableStream
  ended: Promise<number | string | null>
  kill: () => void
}): RunningRank {
  const { pid, output, ended, kill } = parts
  const events: RankEvent[] = []
  const waiting = new Set<() => void>()
  createInterface({ input: output }).on('line', (line) => {
    events.push(JSON.parse(line) as RankEvent)
    for (const look of waiting) look()
  })
  const event = (name: string): Promise<RankEvent> =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        const found = events.find((candidate) => candidate.event === name)
        if (found === undefined) return
        waiting.delete(look)
        resolve(found)
      }
      waiting.add(look)
      look()
      const failed = (): void => reject(new Error(`the rank ended without '${name}': ${JSON.stringify(events)}`))
      ended.then(failed, failed)
    })
  return { pid, events, event, ended, kill }
}
