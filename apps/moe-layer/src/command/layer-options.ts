import { MoeEpError } from '@moe-ep/core'
import type { ModelPreset, ModelShape } from '../presets/model-preset.js'
import { modelPresets } from '../presets/presets.js'
import { parseRouting } from '../routing/routing-kind.js'

/** What travels between ranks: bf16 rows, or fp8 e4m3 with an f32 scale for each 128 elements. Results come back as bf16. */
export type LayerDType = 'bf16' | 'fp8'

/** One run of the layer, as the command line asks for it. Plain data: it travels to the ranks as JSON. */
export interface LayerOptions {
  /** Where rows are dispatched and combined; with cuda every rank has a GPU of its own. */
  readonly device: 'cpu' | 'cuda'
  /** Whether several ranks may use one GPU. */
  readonly shareGpus: boolean
  readonly ranks: number
  /** Dispatch family: high throughput, or low latency. */
  readonly mode: 'ht' | 'll'
  /** Of mode ll, whether a token's row goes to, and comes home from, each rank that has some of its experts, or each expert. */
  readonly protocol?: 'rank' | 'expert'
  /** Micro-batches that a rank's tokens are cut into, of which one computes while others travel. */
  readonly overlap: number
  /** Whether dispatch and combine are recorded once and replayed. */
  readonly graph: boolean
  /** Name of a preset, or a path to a safetensors file. */
  readonly model: string
  /** Name of the preset that a weights file belongs to, where the file does not say. */
  readonly preset?: string
  /** Number of the layer in the names of the tensors, where it is not the model's first. */
  readonly layer?: number
  /** Sizes given on the command line; they complete or replace those of the model. */
  readonly shape: Partial<ModelShape>
  readonly dtype: LayerDType
  /** One count for all ranks, or one for each. */
  readonly tokens: readonly number[]
  readonly routing: string
  readonly seed: number
  readonly iters: number
  readonly json: boolean
  readonly trace: string | undefined
  /** Where the HTML report goes. */
  readonly report: string | undefined
  /** Whether ranks are worker threads of one process. */
  readonly workers: boolean
  readonly timeoutMs: number
  /** Test aid: collect garbage between calls. */
  readonly collectGarbage: boolean
}

/** Options of `node:util` parseArgs for a run. */
export const layerFlags = {
  device: { type: 'string', default: 'auto' },
  'share-gpus': { type: 'boolean', default: false },
  ranks: { type: 'string', default: '8' },
  mode: { type: 'string', default: 'ht' },
  protocol: { type: 'string' },
  overlap: { type: 'string', default: '1' },
  graph: { type: 'boolean', default: false },
  model: { type: 'string', default: 'demo' },
  preset: { type: 'string' },
  layer: { type: 'string' },
  hidden: { type: 'string' },
  intermediate: { type: 'string' },
  experts: { type: 'string' },
  topk: { type: 'string' },
  dtype: { type: 'string', default: 'bf16' },
  tokens: { type: 'string', default: '128' },
  routing: { type: 'string', default: 'uniform' },
  seed: { type: 'string', default: '1' },
  iters: { type: 'string', default: '10' },
  json: { type: 'boolean', default: false },
  trace: { type: 'string' },
  report: { type: 'string' },
  workers: { type: 'boolean', default: false },
  'timeout-ms': { type: 'string', default: '60000' },
  'collect-garbage': { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const

type Flags = { readonly [Name in keyof typeof layerFlags]?: string | boolean | undefined }

/** @throws ERR_MOE_EP_CONFIG naming the flag; ERR_MOE_EP_UNSUPPORTED for what this build cannot run. */
export function layerOptionsFrom(flags: Flags): LayerOptions {
  const ranks = integer('ranks', flags.ranks, 1, 4096)
  requireSupported('device', flags.device, ['cpu', 'cuda', 'auto'])
  requireSupported('mode', flags.mode, ['ht', 'll'])
  requireSupported('dtype', flags.dtype, ['bf16', 'fp8'])
  const routing = String(flags.routing)
  parseRouting(routing, { ranks })
  const model = String(flags.model)
  const isFile = !modelPresets.has(model)
  if (isFile && !model.endsWith('.safetensors')) {
    throw configError('model', `${[...modelPresets.keys()].join(', ')} or a path to a .safetensors file`, model)
  }
  if (flags.preset !== undefined && !isFile) throw configError('preset', 'a .safetensors file as --model', model)
  const tokens = tokensFrom(String(flags.tokens), ranks)
  return {
    ...{
      device: flags.device === 'cuda' ? ('cuda' as const) : ('cpu' as const),
      shareGpus: flags['share-gpus'] === true,
    },
    ...familyFrom(flags, tokens),
    ...{ dtype: flags.dtype as LayerDType, ranks, model, routing, tokens },
    ...(flags.preset !== undefined && { preset: presetNamed(String(flags.preset)).name }),
    ...(flags.layer !== undefined && { layer: layerFrom(flags.layer) }),
    shape: shapeFrom(flags),
    seed: integer('seed', flags.seed, 0, 2 ** 31 - 1),
    iters: integer('iters', flags.iters, 1, 1_000_000),
    json: flags.json === true,
    trace: flags.trace === undefined ? undefined : String(flags.trace),
    report: flags.report === undefined ? undefined : String(flags.report),
    workers: flags.workers === true,
    timeoutMs: integer('timeout-ms', flags['timeout-ms'], 1, 2 ** 31 - 1),
    collectGarbage: flags['collect-garbage'] === true,
  }
}

/** @throws ERR_MOE_EP_CONFIG unless there is such a preset. */
export function presetNamed(name: string): ModelPreset {
  const preset = modelPresets.get(name)
  if (preset === undefined) throw configError('preset', [...modelPresets.keys()].join(', '), name)
  return preset
}

/** The number of a layer. */
export function layerFrom(text: unknown): number {
  return integer('layer', text, 0, 999_999)
}

/** The sizes that were given. */
export function shapeFrom(flags: Flags): Partial<ModelShape> {
  const sizes: [keyof ModelShape, number][] = []
  for (const name of ['hidden', 'intermediate', 'experts', 'topk'] as const) {
    if (flags[name] !== undefined) sizes.push([name, integer(name, flags[name], 1, 2 ** 20)])
  }
  return Object.fromEntries(sizes)
}

export function integer(flag: string, text: unknown, minimum: number, maximum: number): number {
  const value = typeof text === 'string' && /^\d{1,15}$/.test(text) ? Number(text) : NaN
  if (value >= minimum && value <= maximum) return value
  throw configError(flag, `an integer from ${minimum} to ${maximum}`, String(text))
}

export function configError(flag: string, expected: string, received: string): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_CONFIG', `--${flag}: expected ${expected}, received ${received}`)
}

/** Tokens that a rank can send in one low-latency dispatch. */
const maxLowLatencyTokens = 1024

/** The dispatch family and how it is called, checked together. */
function familyFrom(
  flags: Flags,
  tokens: readonly number[],
): Pick<LayerOptions, 'mode' | 'protocol' | 'overlap' | 'graph'> {
  const overlap = integer('overlap', flags.overlap, 1, 64)
  const graph = flags.graph === true
  if (flags.mode === 'ht') {
    if (flags.protocol !== undefined) throw configError('protocol', '--mode ll', `${flags.protocol} with --mode ht`)
    if (!graph) return { mode: 'ht', overlap, graph }
    const why = 'high-throughput dispatches wait on the host for their counts, which no graph can hold; use --mode ll'
    throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', `--graph with --mode ht: ${why}`)
  }
  const { protocol = 'rank' } = flags
  requireSupported('protocol', protocol, ['rank', 'expert'])
  const [most, limit] = [Math.max(...tokens), maxLowLatencyTokens * overlap]
  if (most > limit) {
    const each = overlap === 1 ? '' : `, ${maxLowLatencyTokens} for each of ${overlap} micro-batches,`
    throw configError('tokens', `at most ${limit}${each} with --mode ll`, String(most))
  }
  if (graph && overlap > 1) throw configError('overlap', '1 with --graph', String(overlap))
  return { mode: 'll', protocol: protocol as 'rank' | 'expert', overlap, graph }
}

function tokensFrom(text: string, ranks: number): number[] {
  const counts = text.split(',').map((part) => integer('tokens', part, 0, 2 ** 24))
  if (counts.length === 1) return Array.from({ length: ranks }, () => counts[0]!)
  if (counts.length !== ranks) throw configError('tokens', `one count, or ${ranks} of them`, text)
  return counts
}

function requireSupported(flag: string, value: unknown, supported: readonly string[]): void {
  if (supported.includes(String(value))) return
  throw new MoeEpError(
    'ERR_MOE_EP_UNSUPPORTED',
    `--${flag} ${String(value)}: this version supports ${supported.join(', ')}`,
  )
}
