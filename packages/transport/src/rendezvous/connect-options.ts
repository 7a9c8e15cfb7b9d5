import { hostname } from 'node:os'
import { readFileSync } from 'node:fs'
import { MoeEpError, argumentError } from '@moe-ep/core'
import { defaultMaxFrameBytes, defaultTimeoutMs, maxTimeoutMs, maxWorldSize, minSecretBytes } from './limits.js'
import type { Placement } from './messages.js'

/** How to find the other ranks. What is not given is read from the environment that launchers set. */
export interface ConnectOptions {
  /** This rank. @default RANK, or 0 in a world of one */
  readonly rank?: number | undefined
  /** Number of ranks, at most 4096. @default WORLD_SIZE, or 1 */
  readonly worldSize?: number | undefined
  /**
   * Address at which rank 0 listens and which the others dial: a name, IPv4 or IPv6. @default MASTER_ADDR, or
   * 127.0.0.1
   */
  readonly host?: string | undefined
  /** Port at that address. @default MASTER_PORT */
  readonly port?: number | undefined
  /**
   * What all ranks know and nobody else: at least 16 bytes. Needed when there is more than one rank. @default
   * MOE_EP_SECRET
   */
  readonly secret?: string | undefined
  /** Split the ranks into this many nodes of contiguous ranks; all ranks must say the same. @default MOE_EP_NODES */
  readonly nodes?: number | undefined
  /**
   * Place of this rank on its machine; ranks of a machine are contiguous. @default LOCAL_RANK where
   * LOCAL_WORLD_SIZE is set
   */
  readonly localRank?: number | undefined
  /**
   * Deadline in milliseconds of this call, and the default one of every collective. @default MOE_EP_TIMEOUT_MS, or
   * 30000
   */
  readonly timeoutMs?: number | undefined
  /** Gives up when it aborts; ranks that have joined already are told. */
  readonly signal?: AbortSignal | undefined
  /** Where variables are read from. @default process.env */
  readonly environment?: NodeJS.ProcessEnv | undefined
  /** Largest number of bytes that one rank may pass to one collective; the same on all ranks. @default 64 MiB */
  readonly maxFrameBytes?: number | undefined
}

/** Options with every default filled in and every value checked. */
export interface ConnectSettings {
  readonly rank: number
  readonly worldSize: number
  readonly host: string
  readonly port: number
  readonly secret: string
  readonly timeoutMs: number
  readonly maxFrameBytes: number
  readonly placement: Placement
  readonly signal: AbortSignal | undefined
}

/** The smallest limit still leaves room for what groups exchange about themselves. */
const smallestMaxFrameBytes = 1024
const largestMaxFrameBytes = 2 ** 31 - 1

/**
 * Gives checked settings from options and environment; an option wins over its variable.
 *
 * @throws ERR_MOE_EP_ARGUMENT for a bad option, ERR_MOE_EP_CONFIG for a bad or missing variable
 */
export function resolveConnectOptions(options: ConnectOptions = {}): ConnectSettings {
  const environment = options.environment ?? process.env
  const integer = (name: keyof ConnectOptions, variable: string | undefined, low: number, high: number) =>
    readInteger({ name, value: options[name], variable, environment, low, high })

  const worldSize = integer('worldSize', 'WORLD_SIZE', 1, maxWorldSize) ?? worldOfOne(options, environment)
  const rank = integer('rank', 'RANK', 0, worldSize - 1) ?? (worldSize === 1 ? 0 : missing('rank', 'RANK'))
  const alone = worldSize === 1
  return {
    rank,
    worldSize,
    host: readHost(options.host ?? (environment['MASTER_ADDR'] || '127.0.0.1')),
    port: integer('port', 'MASTER_PORT', 1, 65_535) ?? (alone ? 0 : missing('port', 'MASTER_PORT')),
    secret: alone ? '' : readSecret(options.secret, environment),
    timeoutMs: integer('timeoutMs', 'MOE_EP_TIMEOUT_MS', 1, maxTimeoutMs) ?? defaultTimeoutMs,
    maxFrameBytes:
      integer('maxFrameBytes', undefined, smallestMaxFrameBytes, largestMaxFrameBytes) ?? defaultMaxFrameBytes,
    placement: readPlacement({ rank, worldSize, options, environment }),
    signal: options.signal,
  }
}

/** Without a world size there is one rank; a rank number then means that the launcher's environment is incomplete. */
function worldOfOne(options: ConnectOptions, environment: NodeJS.ProcessEnv): number {
  if ((options.rank ?? 0) !== 0) throw argumentError('worldSize', 'a number, because rank is given', options.worldSize)
  if (options.rank === undefined && environment['RANK']) throw configError('RANK is set, but WORLD_SIZE is not')
  return 1
}

interface IntegerSource {
  readonly name: string
  readonly value: unknown
  readonly variable: string | undefined
  readonly environment: NodeJS.ProcessEnv
  readonly low: number
  readonly high: number
}

function readInteger({ name, value, variable, environment, low, high }: IntegerSource): number | undefined {
  const range = `an integer from ${low} to ${high}`
  if (value !== undefined) {
    if (typeof value === 'number' && Number.isInteger(value) && value >= low && value <= high) return value
    throw argumentError(name, range, value)
  }
  const text = variable === undefined ? undefined : environment[variable]
  if (!text) return undefined
  const parsed = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
  if (parsed >= low && parsed <= high) return parsed
  throw configError(`${variable}: expected ${range}, received ${JSON.stringify(text.slice(0, 40))}`)
}

function readHost(host: unknown): string {
  if (typeof host !== 'string' || host.length === 0 || host.length > 255) {
    throw argumentError('host', 'a host name or an IP address', host)
  }
  return host.startsWith('[') && host.endsWith(']') ? host.slice(1, -1) : host
}

function readSecret(option: unknown, environment: NodeJS.ProcessEnv): string {
  // The secret itself must never reach a message.
  const secret = option ?? environment['MOE_EP_SECRET']
  if (secret === undefined || secret === '') missing('secret', 'MOE_EP_SECRET')
  if (typeof secret === 'string' && Buffer.byteLength(secret) >= minSecretBytes) return secret
  const code = option === undefined ? 'ERR_MOE_EP_CONFIG' : 'ERR_MOE_EP_ARGUMENT'
  const name = option === undefined ? 'MOE_EP_SECRET' : 'secret'
  throw new MoeEpError(code, `${name}: expected a string of at least ${minSecretBytes} bytes`, {
    details: { argument: name },
  })
}

interface PlacementSource {
  readonly rank: number
  readonly worldSize: number
  readonly options: ConnectOptions
  readonly environment: NodeJS.ProcessEnv
}

function readPlacement({ rank, worldSize, options, environment }: PlacementSource): Placement {
  const nodes = readInteger({
    ...{ name: 'nodes', value: options.nodes, variable: 'MOE_EP_NODES' },
    ...{ environment, low: 1, high: worldSize },
  })
  if (nodes !== undefined) return { mode: 'split', key: String(nodes) }
  const local = { environment, low: 0, high: rank }
  if (options.localRank !== undefined) {
    const localRank = readInteger({ ...local, name: 'localRank', value: options.localRank, variable: undefined })
    return { mode: 'local', key: String(rank - (localRank as number)) }
  }
  const perNode = readInteger({
    ...{ name: 'localWorldSize', value: undefined, variable: 'LOCAL_WORLD_SIZE' },
    ...{ environment, low: 1, high: maxWorldSize },
  })
  if (perNode !== undefined) {
    const localRank = readInteger({ ...local, name: 'localRank', value: undefined, variable: 'LOCAL_RANK' })
    return { mode: 'local', key: String(rank - (localRank ?? rank % perNode)) }
  }
  return { mode: 'host', key: worldSize === 1 ? '' : `${hostname()}\n${readBootId()}` }
}

/** Tells machines (and containers' hosts) of equal names apart; other systems than Linux have only the name. */
function readBootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
  } catch {
    return ''
  }
}

function missing(name: string, variable: string): never {
  throw configError(`a world of several ranks needs the option ${name} or the variable ${variable}`)
}

function configError(message: string): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_CONFIG', message)
}
