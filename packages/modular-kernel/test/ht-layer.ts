import { type Experts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import { expect } from 'vitest'
import { type Rank, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, ModularKernel } from '../src/index.js'
import { type Layer, type LayerShape, sizesFor } from './layer.js'

/** A deadline that nobody may have to wait for. */
export const never = 3_600_000

/** A small layer over two ranks. */
export const base: LayerShape = { numTokens: [5, 3], hidden: 16, intermediate: 6, numExperts: 5, topk: 3, seed: 1 }

export interface HtRank extends Rank {
  readonly kernel: ModularKernel
}

/** Runs `body` for all ranks at once, each with a kernel around its buffer. */
export async function onHtRanks(
  layer: Layer,
  body: (rank: HtRank) => Promise<void>,
  options: {
    readonly experts?: (rank: number) => Experts
    readonly timeoutMs?: number
    readonly maxInFlight?: number
  } = {},
): Promise<void> {
  const { experts = () => new GroupedExperts(referenceEngines()), ...bufferOptions } = options
  await withWorld(layer.numRanks, { ...sizesFor(layer.shape), ...bufferOptions }, async (ranks) => {
    await Promise.all(
      ranks.map(async (rank) => {
        const own = experts(rank.rank)
        await body({ ...rank, kernel: new ModularKernel(new HtPrepareAndFinalize(rank.buffer), own) })
        await own.close()
      }),
    )
  })
}

/** Experts that do what `apply` does, in the layer's own format. */
export function expertsThat(apply: Experts['apply'], wrong: Partial<Experts> = {}): Experts {
  return { activationFormat: 'standard', weightAndReduce: noWeightAndReduce, apply, close: async () => {}, ...wrong }
}

/** One layer, and the expectation that it is right bit for bit: also the proof that a buffer still works. */
export async function expectLayer(layer: Layer, { rank, stream, kernel, buffer }: HtRank): Promise<void> {
  const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
  await stream.synchronize()
  expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
  expect(buffer.freeSlots).toBe(buffer.sizes.maxInFlight)
}
