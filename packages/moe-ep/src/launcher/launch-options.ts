import { existsSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { argumentError } from '@moe-ep/core'

/** Where a line that a rank wrote came from. */
export type OutputStream = 'stdout' | 'stderr'

/**
 * What happens to what ranks write: `prefix` writes each line to the same stream of this process with `[rank] `
 * before it, `inherit` gives the ranks the streams of this process, `pipe` keeps the last MiB of each stream in the
 * result, a function gets every line.
 */
export type LaunchOutput = 'prefix' | 'inherit' | 'pipe' | ((rank: number, stream: OutputStream, line: string) => void)

/** What to run, how often and how. */
export interface LaunchOptions {
  /** Number of ranks, from 1 to 4096. */
  readonly ranks: number
  /** The JavaScript file that every rank runs. */
  readonly script: string | URL
  /** Arguments of the script. */
  readonly args?: readonly string[] | undefined
  /** Split the ranks into this many nodes, as if each were a machine of its own (sets MOE_EP_NODES). */
  readonly nodes?: number | undefined
  /** A rank is a process, or a worker thread of this process. @default 'process' */
  readonly mode?: 'process' | 'thread' | undefined
  /** Variables beside those of this process and those of the ranks. */
  readonly environment?: Readonly<Record<string, string>> | undefined
  /** Options of Node itself, such as `--expose-gc`. @default those of this process */
  readonly execArgv?: readonly string[] | undefined
  /** Address at which rank 0 listens. @default '127.0.0.1' */
  readonly host?: string | undefined
  /** Ends all ranks after so many milliseconds; 0 lets them run. @default 0 */
  readonly timeoutMs?: number | undefined
  /** Ends all ranks when it aborts. */
  readonly signal?: AbortSignal | undefined
  /** @default 'prefix' */
  readonly output?: LaunchOutput | undefined
  /** How long the other ranks may take to end by themselves when one has failed, in milliseconds. @default 5000 */
  readonly graceMs?: number | undefined
}

/** Options with every default filled in and every value checked. */
export interface LaunchSettings {
  readonly ranks: number
  readonly script: string
  readonly args: readonly string[]
  readonly nodes: number | undefined
  readonly mode: 'process' | 'thread'
  readonly environment: Readonly<Record<string, string>>
  readonly execArgv: readonly string[] | undefined
  readonly host: string
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
  readonly output: LaunchOutput
  readonly graceMs: number
}

const maxRanks = 4096
const maxTimeoutMs = 2 ** 31 - 1

/**
 * Gives checked settings.
 *
 * @throws ERR_MOE_EP_ARGUMENT naming the option that is wrong
 */
export function resolveLaunchOptions(options: LaunchOptions): LaunchSettings {
  const { ranks, nodes, mode = 'process', output = 'prefix', host = '127.0.0.1' } = options
  const { environment = {}, timeoutMs = 0, graceMs = 5_000 } = options
  checkInteger('ranks', ranks, 1, maxRanks)
  if (nodes !== undefined) checkInteger('nodes', nodes, 1, ranks)
  checkInteger('timeoutMs', timeoutMs, 0, maxTimeoutMs)
  checkInteger('graceMs', graceMs, 0, maxTimeoutMs)
  if (mode !== 'process' && mode !== 'thread') throw argumentError('mode', "'process' or 'thread'", mode)
  if (typeof host !== 'string' || host === '') throw argumentError('host', 'a host name or an IP address', host)
  if (typeof output !== 'function' && !['prefix', 'inherit', 'pipe'].includes(output)) {
    throw argumentError('output', "'prefix', 'inherit', 'pipe' or a function", output)
  }
  const args = checkStrings('args', options.args ?? [])
  const execArgv = options.execArgv && checkStrings('execArgv', options.execArgv)
  const script = findScript(options.script)
  return {
    ranks,
    script,
    args,
    nodes,
    mode,
    environment,
    execArgv,
    host,
    timeoutMs,
    signal: options.signal,
    output,
    graceMs,
  }
}

function findScript(script: unknown): string {
  const isFileUrl = script instanceof URL && script.protocol === 'file:'
  if (!isFileUrl && (typeof script !== 'string' || script === ''))
    throw argumentError('script', 'a path or a file URL', script)
  const path = isFileUrl ? fileURLToPath(script) : resolve(script as string)
  if (!existsSync(path) || !statSync(path).isFile()) throw argumentError('script', 'an existing file', path)
  return path
}

function checkStrings(name: string, values: readonly string[]): readonly string[] {
  if (Array.isArray(values) && values.every((value) => typeof value === 'string')) return [...values]
  throw argumentError(name, 'an array of strings', values)
}

function checkInteger(name: string, value: number, low: number, high: number): void {
  if (Number.isInteger(value) && value >= low && value <= high) return
  throw argumentError(name, `an integer from ${low} to ${high}`, value)
}
