import { availableParallelism } from 'node:os'
import { MoeEpError } from '@moe-ep/core'
import type { LowLatencyProtocol } from '@moe-ep/low-latency'
import type { RoutingKind } from '../workload/routing.js'
import { type OperationName, selectOperations } from './operation-names.js'

/** Sizes of one run. */
export interface BenchSizes {
  /** Tokens of each rank. */
  readonly tokens: number
  readonly hidden: number
  readonly topk: number
  /** Experts of all ranks together. */
  readonly experts: number
}

/** How an iteration on cuda is launched: as one graph, as a plan, or by ordinary calls. */
export type LaunchKind = 'graph' | 'plan' | 'eager'

/** One run, as the command line asks for it. Plain data: it travels to the ranks as JSON. */
export interface BenchOptions extends BenchSizes {
  /** `cpu`, `cuda` (each rank the GPU of its number) or `cuda:<ordinal>` (all ranks that one). */
  readonly device: string
  readonly launch: LaunchKind
  readonly preset: string
  readonly ops: readonly OperationName[]
  /** Processes that run. */
  readonly ranks: number
  /** Ranks that routing is drawn for, those that run among them. */
  readonly world: number
  readonly routing: RoutingKind
  /** Of `low-latency`. */
  readonly protocol: LowLatencyProtocol
  /** Lets several ranks use one GPU. */
  readonly shareGpus: boolean
  /** Threads of each rank's stream. */
  readonly threads: number
  /** Multiprocessors that each call of `intranode-ht` and `low-latency` uses on cuda; the library's default when absent. */
  readonly sms?: number
  readonly iters: number
  readonly warmup: number
  readonly seed: number
  readonly timeoutMs: number
}

/** Named sizes. `h7168` is the workload that published measurements of dispatch libraries use. */
export const presets: Readonly<Record<string, BenchSizes>> = {
  default: { tokens: 1024, hidden: 2048, topk: 8, experts: 64 },
  h7168: { tokens: 4096, hidden: 7168, topk: 8, experts: 256 },
}

/** Options of `node:util` parseArgs. */
export const benchFlags = {
  device: { type: 'string', default: 'auto' },
  preset: { type: 'string', default: 'default' },
  ops: { type: 'string', default: 'all' },
  ranks: { type: 'string', default: '2' },
  world: { type: 'string' },
  routing: { type: 'string', default: 'uniform' },
  protocol: { type: 'string', default: 'rank' },
  launch: { type: 'string' },
  'share-gpus': { type: 'boolean', default: false },
  tokens: { type: 'string' },
  hidden: { type: 'string' },
  topk: { type: 'string' },
  experts: { type: 'string' },
  threads: { type: 'string' },
  sms: { type: 'string' },
  iters: { type: 'string', default: '30' },
  warmup: { type: 'string', default: '5' },
  seed: { type: 'string', default: '1' },
  'timeout-ms': { type: 'string', default: '60000' },
  json: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const

type Flags = { readonly [Name in keyof typeof benchFlags]?: string | boolean | undefined }

/** @throws ERR_MOE_EP_CONFIG naming the flag; ERR_MOE_EP_UNSUPPORTED for operations that need what the other flags exclude. */
export function benchOptionsFrom(flags: Flags): BenchOptions {
  const preset = String(flags.preset)
  if (!Object.hasOwn(presets, preset)) throw configError('preset', Object.keys(presets).join(' or '), preset)
  const ranks = integer('ranks', flags.ranks, 1, 256)
  const world = flags.world === undefined ? ranks : integer('world', flags.world, ranks, 256)
  const shareGpus = flags['share-gpus'] === true
  const device = deviceFrom(flags, { ranks, shareGpus })
  const sizes = sizesFrom(flags, presets[preset]!)
  return {
    ...{ device, launch: launchFrom(flags, device), preset, ranks, world, shareGpus },
    ops: selectOperations(String(flags.ops), { ranks, world, tokens: sizes.tokens, hidden: sizes.hidden }),
    ...sizes,
    routing: routingFrom(flags, sizes, world),
    protocol: protocolFrom(flags),
    threads: flags.threads === undefined ? defaultThreads(ranks) : integer('threads', flags.threads, 1, 256),
    ...(flags.sms !== undefined && { sms: integer('sms', flags.sms, 1, 1024) }),
    iters: integer('iters', flags.iters, 1, 1_000_000),
    warmup: integer('warmup', flags.warmup, 0, 1_000_000),
    seed: integer('seed', flags.seed, 0, 2 ** 31 - 1),
    timeoutMs: integer('timeout-ms', flags['timeout-ms'], 1, 2 ** 31 - 1),
  }
}

function deviceFrom(flags: Flags, { ranks, shareGpus }: { ranks: number; shareGpus: boolean }): string {
  const device = String(flags.device)
  if (device === 'auto') return 'cpu'
  if (!/^(cpu|cuda(:\d{1,3})?)$/.test(device)) throw configError('device', 'cpu, cuda, cuda:<ordinal> or auto', device)
  if (device.includes(':') && ranks > 1 && !shareGpus) {
    throw configError('device', `cuda, a GPU for each of the ${ranks} ranks, or --share-gpus`, device)
  }
  return device
}

function launchFrom(flags: Flags, device: string): LaunchKind {
  const kinds: readonly LaunchKind[] = device === 'cpu' ? ['eager'] : ['graph', 'plan', 'eager']
  if (flags.launch === undefined) return kinds[0]!
  const kind = kinds.find((one) => one === flags.launch)
  if (kind === undefined) throw configError('launch', `${kinds.join(', ')} on ${device}`, String(flags.launch))
  return kind
}

function routingFrom(flags: Flags, { topk, experts }: BenchSizes, world: number): RoutingKind {
  const { routing } = flags
  if (routing !== 'uniform' && routing !== 'skewed') throw configError('routing', 'uniform or skewed', String(routing))
  const half = Math.ceil(topk / 2)
  if (routing === 'skewed' && world > 1 && Math.floor(experts / world) < half) {
    throw configError('routing', `uniform, or ${half} experts on each of the ${world} ranks`, routing)
  }
  return routing
}

function protocolFrom({ protocol }: Flags): LowLatencyProtocol {
  if (protocol === 'rank' || protocol === 'expert') return protocol
  throw configError('protocol', 'rank or expert', String(protocol))
}

function sizesFrom(flags: Flags, preset: BenchSizes): BenchSizes {
  const size = (name: keyof BenchSizes, maximum: number): number =>
    flags[name] === undefined ? preset[name] : integer(name, flags[name], 1, maximum)
  const sizes = {
    tokens: size('tokens', 2 ** 20),
    hidden: size('hidden', 2 ** 17),
    topk: size('topk', 32),
    experts: size('experts', 2 ** 16),
  }
  // Rows of fp8 travel in pieces of 16 bytes.
  if (sizes.hidden % 16 !== 0) throw configError('hidden', 'a multiple of 16', String(sizes.hidden))
  if (sizes.topk > sizes.experts) throw configError('topk', `at most the ${sizes.experts} experts`, String(sizes.topk))
  return sizes
}

function defaultThreads(ranks: number): number {
  return Math.min(256, Math.max(1, Math.floor(availableParallelism() / ranks)))
}

function integer(flag: string, text: unknown, minimum: number, maximum: number): number {
  const value = typeof text === 'string' && /^\d{1,15}$/.test(text) ? Number(text) : NaN
  if (value >= minimum && value <= maximum) return value
  throw configError(flag, `an integer from ${minimum} to ${maximum}`, String(text))
}

function configError(flag: string, expected: string, received: string): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_CONFIG', `--${flag}: expected ${expected}, received ${received}`)
}
