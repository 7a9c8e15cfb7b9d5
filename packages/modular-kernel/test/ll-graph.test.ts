import { copyTensor, Graph, Tensor } from '@moe-ep/core'
import { delegateWeightAndReduce } from '@moe-ep/experts'
import { expect, test } from 'vitest'
import type { Prepared } from '../src/index.js'
import { Layer } from './layer.js'
import { expectedOf, onLlRanks, outputRows } from './ll-layer.js'
import { throughFp8 } from './through-fp8.js'

const shape = { numTokens: [4, 0, 3], hidden: 32, intermediate: 4, numExperts: 5, topk: 2 }
const rounds = [41, 42, 43, 44].map((seed) => new Layer({ ...shape, seed }))
const quant = { kind: 'fp8-block' } as const

test.each([
  [true, false],
  [false, true],
])(
  'prepare and finalize are recorded once and replayed around the experts, with inputs that change; weights at the dispatch: %s, in halves: %s',
  async (weightsAtDispatch, inHalves) => {
    await onLlRanks(
      rounds[0]!,
      async ({ rank, stream, side, kernel, buffer }) => {
        const args = rounds[0]!.argumentsOf(rank)
        let preparing: Promise<Prepared> | undefined
        const dispatch = Graph.capture(stream, () => {
          if (inHalves) {
            const receiver = side.prepareAsync({ ...args, stream })
            receiver.recvHook!()
            preparing = receiver.receive()
          } else preparing = side.prepare({ ...args, stream })
        })
        const { hiddenStates, scales, topkIdx, topkWeights, tokens } = await preparing!
        const expertOutput = Tensor.zeros(hiddenStates.shape, 'bf16')
        const output = Tensor.zeros(args.hiddenStates.shape, 'bf16')
        let finalizing: Promise<void> | undefined
        const combine = Graph.capture(stream, () => {
          const weightAndReduce = delegateWeightAndReduce
          const args = { output, expertOutput, topkIdx, topkWeights, weightAndReduce, stream }
          if (inHalves) {
            const receiver = side.finalizeAsync(args)
            receiver.recvHook!()
            finalizing = receiver.receive()
          } else finalizing = side.finalize(args)
        })
        await finalizing
        expect(buffer.freeSlots).toBe(2)
        for (const layer of [...rounds, ...rounds]) {
          const now = layer.argumentsOf(rank)
          for (const name of ['hiddenStates', 'topkIdx', 'topkWeights'] as const)
            copyTensor(now[name], args[name], { stream })
          dispatch.launch(stream)
          await kernel.experts.apply({
            ...{ output: expertOutput, hiddenStates, scales: scales!, topkIdx, topkWeights, tokens: tokens!, stream },
            weights: now.weights,
          })
          combine.launch(stream)
          await stream.synchronize()
          const rows = await throughFp8(layer.inputs[rank]!.x, quant, { numerics: 'deepep' })
          expect(outputRows(output)).toEqual(expectedOf(layer, rank, { rows, weightsAtDispatch }))
        }
        dispatch.close()
        combine.close()
      },
      { quant, weightsAtDispatch, scaleFormat: 'f32' },
    )
  },
)
