import type { RunSpec } from '../layer/run-spec.js'
import { type StageSummary, summarizeStages } from './stage-summary.js'
import type { RankResult } from './rank-result.js'

/** The object that `--json` prints, there with an `error` where it is not ok. */
export interface LayerResult {
  readonly ok: boolean
  readonly device: string
  /** Where the experts' GEMMs run. */
  readonly expertsDevice: 'cpu'
  readonly mode: string
  /** Who sums the rows of a token's experts; of mode ll. */
  readonly protocol?: string
  /** Micro-batches that a pass is cut into. */
  readonly overlap: number
  /** Whether dispatch and combine were replayed as graphs. */
  readonly graph: boolean
  readonly ranks: number
  readonly nodes: number
  readonly model: string
  readonly dtype: string
  readonly tokensPerRank: readonly number[]
  readonly hidden: number
  readonly intermediate: number
  readonly experts: number
  readonly topK: number
  readonly maxRelError: number
  readonly tolerance: number
  /** Whether all passes of all ranks gave the same bits. */
  readonly deterministic: boolean
  readonly stages: readonly StageSummary[]
  /** Payload of one dispatch between each pair of ranks. */
  readonly routes: readonly {
    readonly from: number
    readonly to: number
    readonly route: string
    readonly bytes: number
  }[]
}

/** Error allowed against the dense f32 computation, by the dtype that travels. */
export const tolerances = { bf16: 2e-2, fp8: 6e-2 } as const

export function summarizeLayer({ options, shape }: RunSpec, results: readonly RankResult[]): LayerResult {
  const maxRelError = Math.max(...results.map((result) => result.maxRelError))
  const tolerance = tolerances[options.dtype]
  const deterministic = results.every((result) => result.deterministic)
  const rowBytes = options.dtype === 'fp8' ? shape.hidden + 4 * Math.ceil(shape.hidden / 128) : shape.hidden * 2
  return {
    ok: maxRelError <= tolerance && deterministic,
    ...{ device: options.device, expertsDevice: 'cpu' },
    mode: options.mode,
    ...(options.protocol !== undefined && { protocol: options.protocol }),
    ...{ overlap: options.overlap, graph: options.graph },
    ...{ ranks: options.ranks, nodes: 1, model: options.model },
    ...{ dtype: options.dtype, tokensPerRank: options.tokens },
    ...{ hidden: shape.hidden, intermediate: shape.intermediate, experts: shape.experts, topK: shape.topk },
    ...{ maxRelError, tolerance, deterministic },
    stages: summarizeStages(results),
    routes: results.flatMap(({ rank, sentRows }) =>
      sentRows.map((rows, to) => ({ from: rank, to, route: to === rank ? 'self' : 'peer', bytes: rows * rowBytes })),
    ),
  }
}

/** How rows were moved, in words: the mode and what differs from its defaults. */
export function modeText({ mode, protocol, overlap, graph }: LayerResult): string {
  return [
    mode,
    ...(protocol === undefined ? [] : [`protocol ${protocol}`]),
    ...(overlap === 1 ? [] : [`${overlap} micro-batches`]),
    ...(graph ? ['dispatch and combine as graphs'] : []),
  ].join(', ')
}
