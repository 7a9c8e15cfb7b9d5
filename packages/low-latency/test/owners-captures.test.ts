import { type CudaDevice, Graph, type Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { expectTrip, shape, sizes } from './trips.js'
import {
  captureTogether,
  device,
  type Input,
  numbersOf,
  overwrite,
  randomInputs,
  toTensors,
  withWorld,
} from './world.js'

/** Of experts that answer with what they got. */
function sumsOf(inputs: readonly Input[]): number[][] {
  const results = reference
    .dispatch(inputs, shape.numExperts)
    .map((experts) => experts.map((rows) => rows.map((row) => [...inputs[row.sourceRank]!.x[row.sourceToken]!])))
  return reference.combine(inputs, results, { ...shape, weighted: true }).map((rows) => rows.flat())
}

test.skipIf(device.kind !== 'cuda')(
  'in graphs that the owner of the stream captures, calls give what they give outside, in turn with those',
  async () => {
    await withWorld(3, sizes, async (ranks) => {
      await Promise.all(
        ranks.map(async (one) => {
          const { rank, stream, buffer } = one
          const wrapped = (device as CudaDevice).wrapStream(stream.cudaHandle)
          const tensors = toTensors(randomInputs(shape)[rank]!, shape)
          const { x, topkIdx, topkWeights } = tensors
          let combinedX!: Tensor
          const graph = await captureTogether(one, () =>
            Graph.capture(stream, () => {
              const options = { numExperts: shape.numExperts, useFp8: false, stream: wrapped, slot: 0 }
              const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { ...options, topkWeights })
              combinedX = buffer.lowLatencyCombine(packedRecvX, topkIdx, undefined, handle, {
                stream: wrapped,
              }).combinedX
            }),
          )
          for (const seed of [5, 6, 7]) {
            const inputs = randomInputs({ ...shape, seed })
            const input = inputs[rank]!
            overwrite(x, input.x.flat(), stream)
            overwrite(topkIdx, input.topkIdx.flat(), stream)
            overwrite(topkWeights, input.topkWeights.flat(), stream)
            graph.launch(stream)
            await stream.synchronize()
            expect(await numbersOf(combinedX)).toEqual(sumsOf(inputs)[rank])
            await expectTrip({ ...one, stream: wrapped }, seed)
          }
          graph.close()
          await wrapped.close()
        }),
      )
    })
  },
)
