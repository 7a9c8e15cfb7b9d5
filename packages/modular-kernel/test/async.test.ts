import { Tensor } from '@moe-ep/core'
import { type Experts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { failureOf, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import {
  guardedReceiver,
  HtPrepareAndFinalize,
  ModularKernel,
  type PrepareAndFinalize,
  type Prepared,
} from '../src/index.js'
import { Layer, sizesFor } from './layer.js'

const layer = new Layer({ numTokens: [4, 0, 3], hidden: 16, intermediate: 4, numExperts: 5, topk: 2, seed: 21 })

/** Parts that only write down who was called. */
function recording(calls: string[], supportsAsync: boolean): { side: PrepareAndFinalize; experts: Experts } {
  const step = <Result>(name: string, result: Result) => {
    calls.push(name)
    return guardedReceiver(name, {
      recvHook: () => void calls.push(`${name} hook`),
      receive: async () => (calls.push(`${name} receive`), result),
    })
  }
  const prepared = ({ hiddenStates, topkIdx, topkWeights }: Prepared): Prepared => ({
    ...{ hiddenStates, topkIdx, topkWeights, scales: undefined, tokens: undefined },
  })
  return {
    side: {
      ...{ activationFormat: 'standard', topkIdxDtype: undefined, maxNumTokensPerRank: undefined, numDispatchers: 1 },
      ...{ outputIsReduced: true, supportsAsync },
      prepare: async (args) => (calls.push('prepare'), prepared(args as unknown as Prepared)),
      finalize: async () => void calls.push('finalize'),
      prepareAsync: (args) => step('prepareAsync', prepared(args as unknown as Prepared)),
      finalizeAsync: () => step('finalizeAsync', undefined),
      release: () => void calls.push('release'),
    },
    experts: {
      ...{ activationFormat: 'standard', weightAndReduce: noWeightAndReduce },
      apply: async () => void calls.push('experts'),
      close: async () => {},
    },
  }
}

const tokens = {
  ...{
    hiddenStates: Tensor.zeros([1, 8], 'bf16'),
    topkIdx: Tensor.zeros([1, 1], 'i32'),
    topkWeights: Tensor.zeros([1, 1], 'f32'),
  },
  ...{ weights: { w13: Tensor.zeros([1, 2, 8], 'f32'), w2: Tensor.zeros([1, 8, 1], 'f32') }, numExperts: 1 },
}
const begun = ['prepareAsync', 'prepareAsync hook', 'prepareAsync receive', 'experts', 'finalizeAsync']
const ended = ['finalizeAsync hook', 'finalizeAsync receive']

describe('the order of steps', () => {
  test('shared experts run while the rows are on their way home', async () => {
    const calls: string[] = []
    const { side, experts } = recording(calls, true)
    const sharedExperts = async (): Promise<void> => {
      calls.push('shared begin')
      await new Promise((resolve) => setImmediate(resolve))
      calls.push('shared end')
    }
    await new ModularKernel(side, experts).apply({ ...tokens, sharedExperts })
    expect(calls).toEqual(['prepare', 'experts', 'finalizeAsync', 'shared begin', 'shared end', ...ended])
  })

  test('others go on between the halves', async () => {
    const calls: string[] = []
    const { side, experts } = recording(calls, true)
    const pass = async (): Promise<void> => void calls.push('pass')
    await new ModularKernel(side, experts).apply({ ...tokens, pass, sharedExperts: () => void calls.push('shared') })
    const [first, ...rest] = begun
    expect(calls).toEqual([first, 'pass', ...rest, 'shared', 'pass', ...ended])
  })

  test.each([1, 2])('a micro-batch that hears of a failure at its turn %i ends what it began', async (turn) => {
    const calls: string[] = []
    const { side, experts } = recording(calls, true)
    let turns = 0
    const pass = (): Promise<void> => (++turns === turn ? Promise.reject(new Error('not mine')) : Promise.resolve())
    const error = await failureOf(new ModularKernel(side, experts).apply({ ...tokens, pass }))
    expect(error.message).toBe('not mine')
    expect(calls).toEqual(turn === 1 ? ['prepareAsync', 'release'] : [...begun, ...ended, 'release'])
  })

  test('without halves nobody is asked to go on', async () => {
    const { side, experts } = recording([], false)
    const pass = (): Promise<void> => Promise.reject(new Error('asked'))
    const output = await new ModularKernel(side, experts).apply({ ...tokens, pass })
    expect(output.shape).toEqual([1, 8])
  })

  test('what has nothing between its halves is one step', async () => {
    const calls: string[] = []
    const { side, experts } = recording(calls, true)
    await new ModularKernel(side, experts).apply(tokens)
    expect(calls).toEqual(['prepare', 'experts', 'finalize'])
  })

  test('without halves they run last', async () => {
    const calls: string[] = []
    const { side, experts } = recording(calls, false)
    await new ModularKernel(side, experts).apply({ ...tokens, sharedExperts: () => void calls.push('shared') })
    expect(calls).toEqual(['prepare', 'experts', 'finalize', 'shared'])
  })

  test('when they fail, what was started is brought to its end, and the error passes on', async () => {
    const calls: string[] = []
    const { side, experts } = recording(calls, true)
    const sharedExperts = (): Promise<void> => Promise.reject(new Error('no luck'))
    const error = await failureOf(new ModularKernel(side, experts).apply({ ...tokens, sharedExperts }))
    expect(error.message).toBe('no luck')
    expect(calls).toEqual(['prepare', 'experts', 'finalizeAsync', ...ended, 'release'])
  })
})

describe('HtPrepareAndFinalize in halves', () => {
  test.each([false, true])('equals the whole, with work between them; a stream of its own: %s', async (ownStream) => {
    await withWorld(3, sizesFor(layer.shape), async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, stream, buffer }) => {
          const commStream = ownStream ? buffer.device.createStream({ threads: 1 }) : undefined
          const side = new HtPrepareAndFinalize(buffer, { ...(commStream && { commStream }) })
          const experts = new GroupedExperts(referenceEngines())
          const args = layer.argumentsOf(rank)
          for (let round = 0; round < 5; round++) {
            stream.delay(((round + rank) % 3) * 500)
            const preparing = side.prepareAsync({ ...args, stream })
            expect(buffer.freeSlots).toBe(1)
            const prepared = await preparing.receive()
            const { hiddenStates, topkIdx, topkWeights } = prepared
            const expertOutput = Tensor.zeros(hiddenStates.shape, 'bf16')
            const shared = { topkIdx, topkWeights, stream }
            if (expertOutput.numel > 0) {
              await experts.apply({ ...shared, hiddenStates, output: expertOutput, weights: args.weights })
            }
            const output = Tensor.zeros(args.hiddenStates.shape, 'bf16')
            const weightAndReduce = noWeightAndReduce
            const finalizing = side.finalizeAsync({ ...shared, output, expertOutput, weightAndReduce })
            expect(buffer.freeSlots).toBe(2)
            await finalizing.receive()
            expect((await failureOf(finalizing.receive())).code).toBe('ERR_MOE_EP_RELEASED')
            await stream.synchronize()
            expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
          }
          await experts.close()
          await commStream?.close()
        }),
      )
    })
  })

  test('a micro-batch that is released before its rows arrive gives its slot back when they do', async () => {
    await withWorld(2, sizesFor(layer.shape), async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, stream, buffer, group }) => {
          const side = new HtPrepareAndFinalize(buffer)
          const args = { ...layer.argumentsOf(rank), stream }
          const preparing = side.prepareAsync(args)
          const twice = side.prepareAsync(args)
          side.release()
          expect((await failureOf(preparing.receive())).code).toBe('ERR_MOE_EP_ABORTED')
          expect((await failureOf(twice.receive())).details).toEqual({ argument: 'microBatch' })
          expect(buffer.freeSlots).toBe(2)
          await group.barrier()
          const again = await side.prepare(args)
          expect(again.hiddenStates.shape[1]).toBe(16)
          side.release()
          expect(buffer.freeSlots).toBe(2)
        }),
      )
    })
  })

  test('what the dispatch refuses is heard from the receiver, and the micro-batch is free again', async () => {
    await withWorld(1, sizesFor(layer.shape), async ([world]) => {
      const { stream, buffer } = world!
      const side = new HtPrepareAndFinalize(buffer)
      const args = { ...layer.argumentsOf(0), stream }
      for (let i = 0; i < 2; i++) {
        const error = await failureOf(side.prepareAsync({ ...args, numExperts: 6 }).receive())
        expect(error.details['argument']).toBe('numExperts')
      }
      // A receiver that nobody asks must not bring the process down.
      side.prepareAsync({ ...args, numExperts: 6 })
      await stream.synchronize()
      await new Promise((resolve) => setImmediate(resolve))
      expect((await side.prepare(args)).hiddenStates.dtype).toBe('bf16')
      side.release()
    })
  })

  test('hidden sizes are rounded up to 512 bytes', () => {
    const round = HtPrepareAndFinalize.roundUpHiddenSize
    expect([round(2880, 'bf16'), round(7168, 'bf16'), round(1, 'f32'), round(513, 'fp8e4m3')]).toEqual([
      3072, 7168, 128, 1024,
    ])
    expect(() => round(0, 'bf16')).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })
})
