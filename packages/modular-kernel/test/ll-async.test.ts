import { type Stream, Tensor } from '@moe-ep/core'
import { delegateWeightAndReduce } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { failureOf } from '../../low-latency/test/world.js'
import { LlPrepareAndFinalize, MicroBatches, type Prepared, type Receiver } from '../src/index.js'
import { Layer } from './layer.js'
import { expectedOf, type LlRank, type LlWorldOptions, onLlRanks, outputRows } from './ll-layer.js'

const shape = { numTokens: [4, 0, 3], hidden: 16, intermediate: 4, numExperts: 5, topk: 2 }
const halves = [21, 22].map((seed) => new Layer({ ...shape, seed }))
const weightAndReduce = delegateWeightAndReduce

/** Experts and the first half of finalize, on rows that arrived. */
async function finalizing(
  { side, kernel, rank }: LlRank,
  prepared: Prepared,
  { microBatch, stream }: { readonly microBatch: number; readonly stream: Stream },
): Promise<{ readonly output: Tensor; readonly receiver: Receiver<void> }> {
  const { hiddenStates, topkIdx, topkWeights, tokens } = prepared
  const layer = halves[microBatch]!
  const expertOutput = Tensor.zeros(hiddenStates.shape, 'bf16')
  const given = { hiddenStates, topkIdx, topkWeights, weights: layer.weightsOf(rank), stream }
  await kernel.experts.apply({ ...given, output: expertOutput, tokens: tokens! })
  const output = Tensor.zeros([layer.inputs[rank]!.x.length, shape.hidden], 'bf16')
  const receiver = side.finalizeAsync({
    output,
    expertOutput,
    topkIdx,
    topkWeights,
    weightAndReduce,
    microBatch,
    stream,
  })
  return { output, receiver }
}

/** One stream for everything, or communication on its own. */
async function withCommStream(
  own: boolean,
  body: (rank: LlRank) => Promise<void>,
  options: LlWorldOptions = {},
): Promise<void> {
  if (!own) return onLlRanks(halves[0]!, body, options)
  await onLlRanks(halves[0]!, async (rank) => {
    const commStream = rank.buffer.device.createStream({ threads: 1 })
    await body({ ...rank, side: new LlPrepareAndFinalize(rank.buffer, { ...options, commStream }) })
    await commStream.close()
  })
}

describe.each([false, true])('in halves, with a stream of its own: %s', (own) => {
  test('equals the whole, hooks called late', async () => {
    await withCommStream(own, async (world) => {
      const { rank, stream, buffer, side } = world
      for (let round = 0; round < 5; round++) {
        const args = halves[0]!.argumentsOf(rank)
        stream.delay(((round + rank) % 3) * 500)
        const preparing = side.prepareAsync({ ...args, stream })
        expect(buffer.freeSlots).toBe(1)
        // What was sent waits for nobody: the stream comes to its end without the receive.
        await stream.synchronize()
        preparing.recvHook!()
        const prepared = await preparing.receive()
        const { output, receiver } = await finalizing(world, prepared, { microBatch: 0, stream })
        await stream.synchronize()
        expect(buffer.freeSlots).toBe(1)
        receiver.recvHook!()
        expect(buffer.freeSlots).toBe(2)
        await receiver.receive()
        await stream.synchronize()
        expect(outputRows(output)).toEqual(expectedOf(halves[0]!, rank, {}))
      }
    })
  })

  test('two micro-batches are in flight, their hooks called in another order on each rank', async () => {
    await withCommStream(own, async (world) => {
      const { rank, stream, buffer, side } = world
      for (let round = 0; round < 6; round++) {
        const order = (round + rank) % 2 === 0 ? [0, 1] : [1, 0]
        const preparing = halves.map((layer, microBatch) =>
          side.prepareAsync({ ...layer.argumentsOf(rank), microBatch, stream }),
        )
        expect(buffer.freeSlots).toBe(0)
        for (const microBatch of order) preparing[microBatch]!.recvHook!()
        const prepared = [await preparing[0]!.receive(), await preparing[1]!.receive()]
        const running: Awaited<ReturnType<typeof finalizing>>[] = []
        for (const microBatch of order)
          running[microBatch] = await finalizing(world, prepared[microBatch]!, { microBatch, stream })
        for (const microBatch of order.toReversed()) running[microBatch]!.receiver.recvHook!()
        for (const { receiver } of running) await receiver.receive()
        await stream.synchronize()
        for (const [half, { output }] of running.entries())
          expect(outputRows(output)).toEqual(expectedOf(halves[half]!, rank, {}))
        expect(buffer.freeSlots).toBe(2)
      }
    })
  })

  test('micro-batches take turns, each calling the hook that the other one left, many times', async () => {
    await withCommStream(
      own,
      async (world) => {
        const { rank, stream, buffer, side } = world
        const batches = new MicroBatches(2)
        const left: (() => void)[] = []
        /** Runs what the other micro-batch started, before this one sends. */
        const runHooks = (): void => left.splice(0).forEach((hook) => hook())
        for (let round = 0; round < 100; round++) {
          const outputs = await batches.run(async ({ microBatch, pass }) => {
            const args = halves[microBatch]!.argumentsOf(rank)
            runHooks()
            const preparing = side.prepareAsync({ ...args, microBatch, stream })
            left.push(preparing.recvHook!)
            await pass()
            runHooks()
            const { output, receiver } = await finalizing(world, await preparing.receive(), { microBatch, stream })
            left.push(receiver.recvHook!)
            await pass()
            runHooks()
            await receiver.receive()
            return output
          })
          await stream.synchronize()
          if (round % 10 > 0) continue
          for (const [half, output] of outputs.entries())
            expect(outputRows(output)).toEqual(expectedOf(halves[half]!, rank, { weightsAtDispatch: false }))
        }
        expect(buffer.freeSlots).toBe(2)
      },
      { weightsAtDispatch: false },
    )
  })
})

describe('the protocol', () => {
  const layer = halves[0]!
  /** One layer that is right: the proof that the buffer works on. */
  async function expectLayer({ rank, stream, kernel, buffer }: LlRank): Promise<void> {
    const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
    await stream.synchronize()
    expect(outputRows(output)).toEqual(expectedOf(layer, rank, {}))
    expect(buffer.freeSlots).toBe(2)
  }

  test('each part is called once, the hook first', async () => {
    await onLlRanks(layer, async (world) => {
      const { rank, stream, side, group } = world
      const preparing = side.prepareAsync({ ...layer.argumentsOf(rank), stream })
      expect((await failureOf(preparing.receive())).code).toBe('ERR_MOE_EP_ARGUMENT')
      preparing.recvHook!()
      expect(() => preparing.recvHook!()).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' }))
      const prepared = await preparing.receive()
      expect((await failureOf(preparing.receive())).code).toBe('ERR_MOE_EP_RELEASED')
      const { receiver } = await finalizing(world, prepared, { microBatch: 0, stream })
      expect((await failureOf(receiver.receive())).code).toBe('ERR_MOE_EP_ARGUMENT')
      receiver.recvHook!()
      await receiver.receive()
      expect((await failureOf(receiver.receive())).code).toBe('ERR_MOE_EP_RELEASED')
      await group.barrier()
      await expectLayer(world)
    })
  })

  test('a micro-batch that is released before its hook gives its slot back, and its receiver says so', async () => {
    await onLlRanks(layer, async (world) => {
      const { rank, stream, side, buffer } = world
      for (let round = 0; round < 3; round++) {
        const preparing = side.prepareAsync({ ...layer.argumentsOf(rank), stream })
        side.release()
        expect(buffer.freeSlots).toBe(2)
        preparing.recvHook!()
        expect((await failureOf(preparing.receive())).code).toBe('ERR_MOE_EP_ABORTED')
      }
      await expectLayer(world)
    })
  })

  test('a micro-batch is begun once, and has a slot of the buffer', async () => {
    await onLlRanks(layer, async (world) => {
      const { rank, stream, side, buffer } = world
      const args = { ...layer.argumentsOf(rank), stream }
      await side.prepare(args)
      for (const microBatch of [0, 2, -1, 0.5]) {
        const error = await failureOf(side.prepare({ ...args, microBatch }))
        expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', 'microBatch'])
      }
      // Somebody else's dispatch lies in the other slot.
      const other = buffer.lowLatencyDispatch(args.hiddenStates, args.topkIdx, { numExperts: 5, stream, slot: 1 })
      expect((await failureOf(side.prepare({ ...args, microBatch: 1 }))).code).toBe('ERR_MOE_EP_NO_FREE_SLOT')
      buffer.release(other.handle)
      side.release()
      await expectLayer(world)
    })
  })

  test('finalize needs a prepare whose hook was called; its slot is free when it fails', async () => {
    await onLlRanks(layer, async (world) => {
      const { rank, stream, side, buffer } = world
      const args = { ...layer.argumentsOf(rank), stream }
      const { topkIdx, topkWeights, hiddenStates } = args
      const finalize = (shape: readonly number[], kind = weightAndReduce) =>
        failureOf(
          side.finalize({
            ...{ output: Tensor.zeros(hiddenStates.shape, 'bf16'), expertOutput: Tensor.zeros(shape, 'bf16') },
            ...{ topkIdx, topkWeights, weightAndReduce: kind, stream },
          }),
        )
      expect((await finalize([2, 12, 16])).message).toContain('micro-batch 0 was not prepared')
      const owned = [2, 2, 1][rank]!
      side.prepareAsync(args)
      expect((await finalize([owned, 12, 16])).details).toEqual({ argument: 'handle' })
      expect(buffer.freeSlots).toBe(2)
      await side.prepare(args)
      expect((await finalize([owned, 11, 16])).details).toEqual({ argument: 'x' })
      expect(buffer.freeSlots).toBe(2)
      await side.prepare(args)
      const other = { ...weightAndReduce, kind: 'none' } as const
      expect((await finalize([owned, 12, 16], other)).details).toEqual({ argument: 'weightAndReduce' })
      await expectLayer(world)
    })
  })
})
