import type { Event, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import {
  device,
  type Input,
  numbersOf,
  type Rank,
  randomInputs,
  resultsOf,
  resultsTensor,
  toTensors,
  withWorld,
} from './world.js'

const sizes = { hidden: 32, maxTokensPerRank: 4, maxTopk: 2 }
const shape = { numTokens: [3, 0, 4], hidden: 32, topk: 2, numExperts: 5, seed: 0 }

/** A step of the layer in a slot: dispatch, its hook, combine, its hook. */
type Step = readonly [slot: number, step: 'dispatch' | 'receive' | 'combine' | 'finish']
const steps = ['dispatch', 'receive', 'combine', 'finish'] as const

/** All orders of the steps of two layers in which each layer's own steps stay in order. */
function interleavings(done: readonly [number, number] = [0, 0]): Step[][] {
  if (done[0] === steps.length && done[1] === steps.length) return [[]]
  return [0, 1].flatMap((slot) => {
    const step = steps[done[slot]!]
    if (step === undefined) return []
    const next: [number, number] = slot === 0 ? [done[0] + 1, done[1]] : [done[0], done[1] + 1]
    return interleavings(next).map((rest): Step[] => [[slot, step], ...rest])
  })
}

interface Layer {
  readonly inputs: readonly Input[]
  readonly results: readonly (readonly (readonly (readonly number[])[])[])[]
  readonly combined: readonly (readonly (readonly number[])[])[]
  readonly weighted: boolean
}

function layerOf(seed: number): Layer {
  const inputs = randomInputs({ ...shape, seed })
  const results = resultsOf(inputs, shape.numExperts)
  const weighted = seed % 2 === 0
  return { inputs, results, combined: reference.combine(inputs, results, { ...shape, weighted }), weighted }
}

/** Plays the steps of two layers; gives what comes home in each slot, there when the stream is done. */
function play({ rank, stream, buffer }: Rank, layers: readonly Layer[], order: readonly Step[]): Tensor[] {
  const combined: Tensor[] = []
  const hooks: (() => Event)[] = []
  const handles: ReturnType<typeof buffer.lowLatencyDispatch>[] = []
  const tensors = layers.map(({ inputs }) => toTensors(inputs[rank]!, shape))
  order.forEach(([slot, step], index) => {
    const { weighted, results } = layers[slot]!
    const { x, topkIdx, topkWeights } = tensors[slot]!
    const options = { stream, returnRecvHook: true }
    // Other work between the steps, of another length on each rank.
    stream.delay(100 * ((index + rank) % 3))
    if (step === 'dispatch') {
      handles[slot] = buffer.lowLatencyDispatch(x, topkIdx, {
        ...{ ...options, numExperts: shape.numExperts, useFp8: false, slot, ...(weighted && { topkWeights }) },
      })
      hooks[slot] = handles[slot].hook!
    } else if (step === 'combine') {
      const { packedRecvX, handle } = handles[slot]!
      const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
      const call = buffer.lowLatencyCombine(y, topkIdx, weighted ? undefined : topkWeights, handle, options)
      combined[slot] = call.combinedX
      hooks[slot] = call.hook!
    } else {
      hooks[slot]!()
    }
  })
  return combined
}

async function expectAll(ranks: readonly Rank[], orderOf: (round: number, rank: number) => Step[], rounds: number) {
  const layers = Array.from({ length: 6 }, (_, seed) => layerOf(seed))
  const layersOf = (round: number): Layer[] => [layers[round % 6]!, layers[(round + 1) % 6]!]
  // The queue of a stream of a GPU takes so much and no more, and then blocks whoever enqueues: here also the other ranks.
  const atOnce = 4
  for (let begin = 0; begin < rounds; begin += atOnce) {
    await Promise.all(
      ranks.map(async (rank) => {
        const played = Array.from({ length: Math.min(atOnce, rounds - begin) }, (_, i) => begin + i)
        const sums = played.map((round) => play(rank, layersOf(round), orderOf(round, rank.rank)))
        await rank.stream.synchronize()
        for (const [i, bySlot] of sums.entries()) {
          const round = begin + i
          for (const [slot, sum] of bySlot.entries()) {
            expect(await numbersOf(sum), `round ${round}, slot ${slot}`).toEqual(
              layersOf(round)[slot]!.combined[rank.rank]!.flat(),
            )
          }
        }
        expect(rank.buffer.freeSlots).toBe(2)
      }),
    )
  }
}

test('steps of two layers in flight, in all orders that there are', async () => {
  const orders = interleavings()
  expect(orders.length).toBe(70)
  await withWorld(3, { device, ...sizes }, (ranks) => expectAll(ranks, (round) => orders[round]!, orders.length))
})

test('ranks call their hooks in different orders, once all has been sent', async () => {
  const both = (step: Step[1], first: number): Step[] => [
    [first, step],
    [1 - first, step],
  ]
  // Sends wait for nobody, so that each rank may choose an order of its own for every step.
  const orderOf = (round: number, rank: number): Step[] =>
    steps.flatMap((step, index) => both(step, ((round * 3 + rank) >> index) & 1))
  await withWorld(3, { device, ...sizes }, (ranks) => expectAll(ranks, orderOf, 32))
})

test('a hook that is called from a later turn of the loop, behind other work of the same stream', async () => {
  const layer = layerOf(1)
  await withWorld(3, { device, ...sizes }, async (ranks) => {
    const dispatched = await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx, topkWeights } = toTensors(layer.inputs[rank]!, shape)
        const options = { stream, returnRecvHook: true, numExperts: shape.numExperts, useFp8: false }
        const call = buffer.lowLatencyDispatch(x, topkIdx, options)
        // The send phase ends without anybody's receive phase.
        await call.event.synchronize()
        return { ...call, topkIdx, topkWeights }
      }),
    )
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { hook, packedRecvX, handle, topkIdx, topkWeights } = dispatched[rank]!
        stream.delay(1000 * rank)
        hook!()
        const y = resultsTensor(layer.results[rank]!, packedRecvX.shape[1]!, shape.hidden)
        const { combinedX, event } = buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, { stream })
        await event.synchronize()
        expect(await numbersOf(combinedX)).toEqual(layer.combined[rank]!.flat())
      }),
    )
  })
})
