import { copyTensor, type CudaDevice, Graph, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { expectRoundTrip } from './round-trip.js'
import { captureTogether, device, deviceOfRank, withWorld } from './world.js'

const [tokens, hidden, topk, numExperts] = [4, 16, 2, 3]

test.skipIf(device.kind !== 'cuda')(
  'in graphs that the owner of the stream captures, calls give what they give outside, in turn with those',
  async () => {
    await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: topk, maxExperts: numExperts }, async (ranks) => {
      const captured = await Promise.all(
        ranks.map(async (one) => {
          const { rank, stream, buffer } = one
          const gpu = deviceOfRank(rank) as CudaDevice
          const wrapped = gpu.wrapStream(stream.cudaHandle)
          const x = Tensor.zeros([tokens, hidden], 'bf16', gpu)
          // To the next rank and to the one after that: a row comes home as the sum of two.
          const ids = Array.from({ length: tokens * topk }, (_, i) => (rank + 1 + (i % topk)) % numExperts)
          const topkIdx = Tensor.from(ids, [tokens, topk], 'i32', gpu)
          const out = Tensor.zeros([tokens, hidden], 'bf16', gpu)
          const graph = await captureTogether(one, () =>
            Graph.capture(stream, () => {
              const options = { topkIdx, numExperts, stream: wrapped, slot: 0 }
              const { handle } = buffer.dispatchWorstCase(x, options)
              buffer.combine(buffer.combineInput(handle), handle, { stream: wrapped, out })
            }),
          )
          return { ...one, wrapped, x, out, graph }
        }),
      )
      for (const value of [1, -3, 5]) {
        await Promise.all(
          captured.map(async ({ rank, stream, x, out, graph }) => {
            const values = Array.from({ length: tokens * hidden }, (_, i) => value * ((i % 7) + rank))
            copyTensor(Tensor.from(values, [tokens, hidden], 'bf16', x.device), x, { stream })
            graph.launch(stream)
            expect(Array.from(await out.readNumbers({ stream }))).toEqual(values.map((number) => 2 * number))
          }),
        )
        await expectRoundTrip(
          captured.map((one) => ({ ...one, stream: one.wrapped })),
          { numTokens: [4, 0, 3], hidden, topk, numExperts, dtype: 'bf16', seed: value + 10 },
        )
      }
      for (const { graph } of captured) graph.close()
      await Promise.all(captured.map(({ wrapped }) => wrapped.close()))
    })
  },
)
