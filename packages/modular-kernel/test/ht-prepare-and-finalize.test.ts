import { Tensor } from '@moe-ep/core'
import { contiguousWeightAndReduce, delegateWeightAndReduce, type Experts } from '@moe-ep/experts'
import { linearPlacement } from '@moe-ep/layout'
import { describe, expect, test } from 'vitest'
import { failureOf, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, ModularKernel } from '../src/index.js'
import { Layer, sizesFor } from './layer.js'

const layer = new Layer({ numTokens: [4, 0, 3], hidden: 8, intermediate: 4, numExperts: 5, topk: 3, seed: 7 })

/** Rows of every slot [M', topk, K] as experts would leave them that do not weight: zeros where the slot is another rank's. */
function rowsOfSlots(prepared: { hiddenStates: Tensor; topkIdx: Tensor }, firstExpert: number, of: Layer): Tensor {
  const [rows, topk] = prepared.topkIdx.shape as [number, number]
  const { hidden } = of.shape
  const ids = rowsOnHost(prepared.topkIdx)
  const inputs = rowsOnHost(prepared.hiddenStates)
  const values = ids.flatMap((slots, row) =>
    slots.flatMap((id) =>
      id < 0
        ? Array.from({ length: hidden }, () => NaN)
        : [...of.expertRow(firstExpert + id, Float32Array.from(inputs[row]!))],
    ),
  )
  return Tensor.from(values, [rows, topk, hidden], 'bf16')
}

describe.each([contiguousWeightAndReduce, delegateWeightAndReduce])(
  'experts that leave one row a slot: $kind',
  (weightAndReduce) => {
    test('finalize weights and sums them; slots of other ranks are not read', async () => {
      await withWorld(3, sizesFor(layer.shape), async (ranks) => {
        await Promise.all(
          ranks.map(async ({ rank, stream, buffer }) => {
            const prepareAndFinalize = new HtPrepareAndFinalize(buffer)
            const args = layer.argumentsOf(rank)
            const prepared = await prepareAndFinalize.prepare({ ...args, stream })
            await stream.synchronize()
            const expertOutput = rowsOfSlots(prepared, linearPlacement(5, 3).rangeOf(rank).begin, layer)
            const output = Tensor.zeros(args.hiddenStates.shape, 'bf16')
            const { topkIdx, topkWeights } = prepared
            // A rank that received nothing hands over rows of no slots, which there are none of.
            const handed = expertOutput.shape[0] === 0 ? Tensor.zeros([0, 8], 'bf16') : expertOutput
            await prepareAndFinalize.finalize({
              output,
              expertOutput: handed,
              topkIdx,
              topkWeights,
              weightAndReduce,
              stream,
            })
            await stream.synchronize()
            expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
            expect(buffer.freeSlots).toBe(2)
          }),
        )
      })
    })

    test('a kernel with top-1 experts that leave the weights to finalize', async () => {
      const single = new Layer({ ...layer.shape, topk: 1, seed: 9 })
      await withWorld(3, sizesFor(single.shape), async (ranks) => {
        await Promise.all(
          ranks.map(async ({ rank, stream, buffer }) => {
            const { begin } = linearPlacement(5, 3).rangeOf(rank)
            const experts: Experts = {
              activationFormat: 'standard',
              weightAndReduce,
              async apply({ output, hiddenStates, topkIdx, stream }) {
                await stream.synchronize()
                output.data.set(rowsOfSlots({ hiddenStates, topkIdx }, begin, single).data as never)
              },
              async close() {},
            }
            const kernel = new ModularKernel(new HtPrepareAndFinalize(buffer), experts)
            const output = await kernel.apply({ ...single.argumentsOf(rank), stream })
            await stream.synchronize()
            expect(rowsOnHost(output)).toEqual(single.expectedOf(rank))
          }),
        )
      })
    })
  },
)

test('prepare delivers local ids, weights and counts; finalize and release without prepare', async () => {
  await withWorld(1, sizesFor({ ...layer.shape, numTokens: [4] }), async ([rank]) => {
    const { stream, buffer } = rank!
    const alone = new Layer({ ...layer.shape, numTokens: [4] })
    const prepareAndFinalize = new HtPrepareAndFinalize(buffer)
    const args = alone.argumentsOf(0)
    const prepared = await prepareAndFinalize.prepare({ ...args, stream })
    await stream.synchronize()
    const named = alone.inputs[0]!.topkIdx.flat()
    const counts = Array.from({ length: 5 }, (_, expert) => named.filter((id) => id === expert).length)
    expect(Array.from(prepared.tokens!.numTokensHost!)).toEqual(counts)
    expect(Array.from(prepared.tokens!.numTokens.toNumbers())).toEqual(counts)
    expect(prepared.scales).toBeUndefined()
    const sent = alone.inputs[0]!.topkIdx.filter((slots) => slots.some((id) => id >= 0))
    expect(rowsOnHost(prepared.topkIdx)).toEqual(sent)
    prepareAndFinalize.release()
    prepareAndFinalize.release(17)
    expect(buffer.freeSlots).toBe(2)

    const { topkIdx, topkWeights } = prepared
    const output = Tensor.zeros([4, 8], 'bf16')
    const late = prepareAndFinalize.finalize({
      ...{ output, expertOutput: output, topkIdx, topkWeights, weightAndReduce: contiguousWeightAndReduce, stream },
    })
    expect(await failureOf(late)).toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      message: expect.stringContaining('micro-batch 0'),
    })
  })
})
