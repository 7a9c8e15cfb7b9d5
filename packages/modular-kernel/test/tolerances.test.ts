import { BatchedExperts, GroupedExperts, onnxEngines } from '@moe-ep/experts'
import { expect, test } from 'vitest'
import { rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, ModularKernel } from '../src/index.js'
import { Layer, sizesFor } from './layer.js'
import { onLlRanks } from './ll-layer.js'

/** 1 - 2 sum(xy) / sum(xx + yy): 0 for equal tensors, about half the squared relative error for close ones. */
function difference(left: readonly number[], right: readonly number[]): number {
  let product = 0
  let squares = 0
  for (const [i, value] of left.entries()) {
    product += value * right[i]!
    squares += value * value + right[i]! * right[i]!
  }
  return squares === 0 ? 0 : 1 - (2 * product) / squares
}

function expectNear(actual: readonly number[], expected: readonly number[], most: number): void {
  expect(difference(actual, expected)).toBeLessThan(most)
  const largest = Math.max(...expected.map(Math.abs))
  const off = actual.map((value, i) => Math.abs(value - expected[i]!) / largest)
  expect(Math.max(...off)).toBeLessThan(6e-2)
}

const shapes = [
  { tokens: 1, intermediate: 128, hidden: 128 },
  { tokens: 2, intermediate: 128, hidden: 512 },
  { tokens: 32, intermediate: 128, hidden: 256 },
  { tokens: 45, intermediate: 64, hidden: 128 },
]
const rest = { numExperts: 32, topk: 6, seed: 7, weightDtype: 'bf16' } as const

test.each(shapes)('2 ranks, 32 experts, top-6, %j: bf16 and fp8 near the dense loop', async ({ tokens, ...sizes }) => {
  const layer = new Layer({ ...sizes, ...rest, numTokens: [tokens, tokens] })
  const expected = [0, 1].map((rank) => layer.expectedOf(rank).flat())
  await withWorld(2, sizesFor(layer.shape), async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const experts = new GroupedExperts(onnxEngines())
        for (const [options, most] of [
          [{}, 1e-5],
          [{ quant: { kind: 'fp8-block' } }, 2e-3],
        ] as const) {
          const kernel = new ModularKernel(new HtPrepareAndFinalize(buffer, options), experts)
          const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
          await stream.synchronize()
          expectNear(rowsOnHost(output).flat(), expected[rank]!, most)
        }
        await experts.close()
      }),
    )
  })
})

test.each(shapes)('low latency, 2 ranks, 32 experts, top-6, %j: near the dense loop', async ({ tokens, ...sizes }) => {
  const layer = new Layer({ ...sizes, ...rest, numTokens: [tokens, tokens] })
  const expected = [0, 1].map((rank) => layer.expectedOf(rank).flat())
  const experts = (): BatchedExperts => new BatchedExperts(onnxEngines(), { maxNumTokens: tokens, numDispatchers: 2 })
  for (const [options, most] of [
    [{ weightsAtDispatch: false }, 1e-5],
    [{ quant: { kind: 'fp8-block' } }, 2e-3],
    [{ quant: { kind: 'fp8-block' }, scaleFormat: 'ue8m0-packed' }, 2e-3],
  ] as const) {
    await onLlRanks(
      layer,
      async ({ rank, stream, kernel }) => {
        const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
        await stream.synchronize()
        expectNear(rowsOnHost(output).flat(), expected[rank]!, most)
      },
      { ...options, experts },
    )
  }
})
