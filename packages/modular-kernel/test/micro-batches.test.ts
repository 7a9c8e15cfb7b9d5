import { type Stream, Tensor } from '@moe-ep/core'
import { BatchedExperts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { failureOf, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, MicroBatches, ModularKernel } from '../src/index.js'
import { type HtRank, onHtRanks } from './ht-layer.js'
import { Layer, sizesFor } from './layer.js'
import { expectedOf, type LlRank, onLlRanks, outputRows } from './ll-layer.js'

const pause = (turns: number): Promise<void> =>
  turns === 0 ? Promise.resolve() : new Promise((resolve) => setImmediate(() => void pause(turns - 1).then(resolve)))

describe('MicroBatches', () => {
  test('go on in ring order, however long each takes, and without those that have ended', async () => {
    const steps: string[] = []
    const results = await new MicroBatches(3).run(async ({ microBatch, pass }) => {
      for (let step = 0; step < [3, 1, 4][microBatch]!; step++) {
        await pause((microBatch * 2 + step) % 4)
        steps.push(`${microBatch}.${step}`)
        await pass()
      }
      return microBatch * 10
    })
    expect(steps).toEqual(['0.0', '1.0', '2.0', '0.1', '2.1', '0.2', '2.2', '2.3'])
    expect(results).toEqual([0, 10, 20])
  })

  test('one that fails ends the others at their next turn; the first failure is the answer', async () => {
    const ends: string[] = []
    const batches = new MicroBatches(3)
    const failure = await failureOf(
      batches.run(async ({ microBatch, pass }) => {
        await pass()
        if (microBatch === 1) throw new Error('out of luck')
        await pass().catch((error: { code: string }) => {
          ends.push(`${microBatch} ${error.code}`)
          throw error
        })
      }),
    )
    expect(failure.message).toBe('out of luck')
    expect(ends).toEqual(['0 ERR_MOE_EP_ABORTED'])
    expect(await batches.run(async ({ microBatch }) => microBatch)).toEqual([0, 1, 2])
  })

  test('run once at a time', async () => {
    const batches = new MicroBatches(1)
    const first = batches.run(({ pass }) => pass())
    expect((await failureOf(batches.run(async () => {}))).code).toBe('ERR_MOE_EP_ARGUMENT')
    expect(await first).toEqual([undefined])
    expect(() => new MicroBatches(0)).toThrow(expect.objectContaining({ details: { argument: 'count' } }))
  })

  test('two halves of a layer take turns around dispatch and combine, many times', async () => {
    const halves = [30, 31].map(
      (seed) => new Layer({ numTokens: [3, 2], hidden: 16, intermediate: 2, numExperts: 4, topk: 2, seed }),
    )
    await withWorld(2, sizesFor(halves[0]!.shape), async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, stream, buffer }) => {
          const side = new HtPrepareAndFinalize(buffer)
          const experts = new GroupedExperts(referenceEngines())
          const batches = new MicroBatches(2)
          for (let round = 0; round < 100; round++) {
            const outputs = await batches.run(async ({ microBatch, pass }) => {
              const args = halves[microBatch]!.argumentsOf(rank)
              const preparing = side.prepareAsync({ ...args, microBatch, stream })
              await pass()
              const { hiddenStates, topkIdx, topkWeights } = await preparing.receive()
              const given = { topkIdx, topkWeights, stream }
              const expertOutput = Tensor.zeros(hiddenStates.shape, 'bf16')
              if (expertOutput.numel > 0) {
                await experts.apply({ ...given, hiddenStates, output: expertOutput, weights: args.weights })
              }
              await pass()
              const output = Tensor.zeros(args.hiddenStates.shape, 'bf16')
              const finalizing = { ...given, output, expertOutput, weightAndReduce: noWeightAndReduce, microBatch }
              await side.finalizeAsync(finalizing).receive()
              return output
            })
            await stream.synchronize()
            if (round % 10 > 0) continue
            for (const [half, output] of outputs.entries())
              expect(rowsOnHost(output)).toEqual(halves[half]!.expectedOf(rank))
          }
          expect(buffer.freeSlots).toBe(2)
          await experts.close()
        }),
      )
    })
  })

  describe('whole layers go on while the rows of others travel', () => {
    const parts = [50, 51, 52].map(
      (seed) => new Layer({ numTokens: [3, 0, 2], hidden: 16, intermediate: 2, numExperts: 4, topk: 2, seed }),
    )
    const sizes = { ...sizesFor(parts[0]!.shape), maxInFlight: 3 }
    const run = async (rank: number, stream: Stream, kernel: ModularKernel): Promise<void> => {
      const batches = new MicroBatches(3)
      for (let round = 0; round < 20; round++) {
        const outputs = await batches.run(({ microBatch, pass }) =>
          kernel.apply({ ...parts[microBatch]!.argumentsOf(rank), microBatch, pass, stream }),
        )
        await stream.synchronize()
        for (const [part, output] of outputs.entries())
          expect(outputRows(output)).toEqual(expectedOf(parts[part]!, rank, {}))
      }
      await kernel.experts.close()
    }

    test.each([false, true])('of the high-throughput family, with a stream of its own: %s', async (own) => {
      await withWorld(3, sizes, async (ranks) => {
        await Promise.all(
          ranks.map(async ({ rank, stream, buffer }) => {
            const commStream = buffer.device.createStream({ threads: 1 })
            const side = new HtPrepareAndFinalize(buffer, own ? { commStream } : {})
            await run(rank, stream, new ModularKernel(side, new GroupedExperts(referenceEngines())))
            expect(buffer.freeSlots).toBe(3)
            await commStream.close()
          }),
        )
      })
    })

    test('of the low-latency family', async () => {
      const experts = (): BatchedExperts =>
        new BatchedExperts(referenceEngines(), { maxNumTokens: 3, numDispatchers: 3 })
      const body = async ({ rank, stream, kernel, buffer }: LlRank): Promise<void> => {
        await run(rank, stream, kernel)
        expect(buffer.freeSlots).toBe(3)
      }
      await onLlRanks(parts[0]!, body, { experts, maxInFlight: 3 })
    })
  })
})

describe('two layers are in flight at a time on streams of their own', () => {
  const shape = { numTokens: [4, 0, 3], hidden: 16, intermediate: 4, numExperts: 5, topk: 2 }
  const halves = [21, 22].map((seed) => new Layer({ ...shape, seed }))
  const expectRounds = async ({ rank, kernel, buffer }: HtRank | LlRank): Promise<void> => {
    const streams = halves.map(() => buffer.device.createStream({ threads: 1 }))
    for (let round = 0; round < 10; round++) {
      // Delays differ by rank and half, so that they finish in every order.
      for (const [half, stream] of streams.entries()) stream.delay(((round + rank) % 3) * (half + 1) * 700)
      const running = halves.map((layer, microBatch) =>
        kernel.apply({ ...layer.argumentsOf(rank), microBatch, stream: streams[microBatch]! }),
      )
      expect(buffer.freeSlots).toBe(0)
      const outputs = await Promise.all(running)
      await Promise.all(streams.map((stream) => stream.synchronize()))
      for (const [half, output] of outputs.entries())
        expect(outputRows(output)).toEqual(expectedOf(halves[half]!, rank, {}))
      expect(buffer.freeSlots).toBe(2)
    }
    await Promise.all(streams.map((stream) => stream.close()))
  }

  test('of the high-throughput family', () => onHtRanks(halves[0]!, (rank) => expectRounds(rank)))
  test('of the low-latency family', () => onLlRanks(halves[0]!, (rank) => expectRounds(rank)))
})
