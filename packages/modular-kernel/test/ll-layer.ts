import type { Tensor } from '@moe-ep/core'
import { BatchedExperts, type Experts, referenceEngines } from '@moe-ep/experts'
import type { LowLatencyProtocol } from '@moe-ep/low-latency'
import { rowsOnHost } from '../../intranode-ht/test/world.js'
import { type Rank, withWorld } from '../../low-latency/test/world.js'
import { LlPrepareAndFinalize, type LlPrepareAndFinalizeOptions, ModularKernel } from '../src/index.js'
import { type Layer, rounded } from './layer.js'

export interface LlRank extends Rank {
  readonly side: LlPrepareAndFinalize
  readonly kernel: ModularKernel
}

export interface LlWorldOptions extends LlPrepareAndFinalizeOptions {
  readonly experts?: (rank: number) => Experts
  readonly timeoutMs?: number
  readonly maxInFlight?: number
  readonly protocol?: LowLatencyProtocol
}

/** Experts of one rank that take as many rows as the layer's ranks can send. */
export function batchedExpertsFor({ shape: { numTokens } }: Layer): BatchedExperts {
  const maxNumTokens = Math.max(1, ...numTokens)
  return new BatchedExperts(referenceEngines(), { maxNumTokens, numDispatchers: numTokens.length })
}

/** Runs `body` for all ranks at once, each with a kernel around its low-latency buffer. */
export async function onLlRanks(
  layer: Layer,
  body: (rank: LlRank) => Promise<void>,
  options: LlWorldOptions = {},
): Promise<void> {
  const { experts = () => batchedExpertsFor(layer), timeoutMs, maxInFlight, protocol, ...sideOptions } = options
  const { hidden, topk, numTokens } = layer.shape
  const sizes = {
    ...{ hidden, maxTopk: topk, maxTokensPerRank: Math.max(...numTokens) },
    ...(timeoutMs !== undefined && { timeoutMs }),
    ...(maxInFlight !== undefined && { maxInFlight }),
    ...(protocol !== undefined && { protocol }),
  }
  await withWorld(layer.numRanks, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (rank) => {
        const own = experts(rank.rank)
        const side = new LlPrepareAndFinalize(rank.buffer, sideOptions)
        await body({ ...rank, side, kernel: new ModularKernel(side, own) })
        await own.close()
      }),
    )
  })
}

/** What a rank must get. `rows` replaces its tokens. */
export function expectedOf(
  layer: Layer,
  rank: number,
  { weightsAtDispatch = true, rows }: { readonly weightsAtDispatch?: boolean; readonly rows?: readonly Float32Array[] },
): number[][] {
  const { x, topkIdx, topkWeights } = layer.inputs[rank]!
  // With weights at the dispatch each rank sums first: the high-throughput family's bits.
  if (weightsAtDispatch) return withoutNegativeZeros(layer.expectedOf(rank, rows))
  return withoutNegativeZeros(
    (rows ?? x).map((row, token) => {
      const sum = topkIdx[token]!.reduce((total, id, slot) => {
        if (id < 0) return total
        const y = layer.expertRow(id, row)
        return total.map((value, i) => value + Math.fround(topkWeights[token]![slot]! * y[i]!))
      }, new Float32Array(row.length))
      return Array.from(rounded('bf16', sum))
    }),
  )
}

/** Rows of an output as numbers. A sum of one -0 keeps its sign where nothing is added to it, which the loops above do. */
export function outputRows(output: Tensor): number[][] {
  return withoutNegativeZeros(rowsOnHost(output))
}

function withoutNegativeZeros(rows: readonly (readonly number[])[]): number[][] {
  return rows.map((row) => row.map((value) => value + 0))
}
