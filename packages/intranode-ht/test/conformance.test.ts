import { type DType, decode, encode, Tensor } from '@moe-ep/core'
import { linearPlacement, reference as layoutReference } from '@moe-ep/layout'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type DispatchPlan, reference } from '../src/index.js'
import { type InputShape, numbersOf, randomInputs, rowsOf, toTensors, withWorld } from './world.js'
import { repeats } from '../../../tooling/vitest/repeats.js'

const shapes = fc
  .record({
    numRanks: fc.integer({ min: 1, max: 8 }),
    hidden: fc.constantFrom(8, 24, 136, 2880),
    topk: fc.integer({ min: 1, max: 9 }),
    numExperts: fc.integer({ min: 1, max: 20 }),
    dtype: fc.constantFrom<DType>('bf16', 'f16', 'f32'),
    seed: fc.nat(1e6),
    routing: fc.constantFrom('random', 'one expert', 'nowhere'),
    idDtype: fc.constantFrom('i32' as const, 'i64' as const),
  })
  .chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      numTokens: fc.array(fc.nat(12), { minLength: shape.numRanks, maxLength: shape.numRanks }),
    }),
  )

/** What an expert's rank makes of a row: anything that depends on the row and on the rank. */
function resultOf(values: readonly number[], rank: number, dtype: DType): number[] {
  return Array.from(
    decode(
      dtype,
      encode(
        dtype,
        values.map((value) => Math.fround(value * (rank + 0.5))),
      ),
    ),
  )
}

describe('dispatch and combine', () => {
  test('equal the reference bit for bit', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(shapes, async ({ shape: { routing, numRanks, idDtype, ...rest }, numTokens }) => {
        const hot = rest.numExperts - 1
        const choose = routing === 'one expert' ? () => hot : routing === 'nowhere' ? () => -1 : undefined
        const shape: InputShape = { ...rest, numTokens, ...(choose && { choose }) }
        const inputs = randomInputs(shape)
        const expected = reference.dispatch(inputs, shape.numExperts)
        const options = {
          hidden: shape.hidden,
          maxTokensPerRank: 12,
          maxElementBytes: 4,
          threads: (rank: number) => 1 + (rank % 3),
        }
        await withWorld(numRanks, options, async (ranks) => {
          const { dtype, numExperts, hidden } = shape
          const results = expected.map((rows, rank) => rows.map((row) => resultOf(row.values, rank, dtype)))
          const expectedCombine = reference.combine(expected, results, { numTokens, hidden, dtype })
          await Promise.all(
            ranks.map(async ({ rank, stream, buffer }) => {
              const { x, ...routing } = toTensors(inputs[rank]!, shape, stream, idDtype)
              const received = await buffer.dispatch(x, { ...routing, numExperts, stream, numChannels: 3 })
              await received.event.synchronize()
              const rows = expected[rank]!
              expect(await rowsOf(received.recvX)).toEqual(rows.map((row) => row.values))
              expect(await rowsOf(received.recvTopkIdx!)).toEqual(rows.map((row) => row.topkIdx))
              expect(await rowsOf(received.recvTopkWeights!)).toEqual(rows.map((row) => row.topkWeights))
              expect(await numbersOf(received.handle.recvSrcIdx)).toEqual(rows.map((row) => row.sourceToken))
              await expectPlan(received.handle.plan, inputs, rank, numExperts)
              const y = Tensor.from(results[rank]!.flat(), [rows.length, hidden], dtype, stream.device)
              const { combinedX } = buffer.combine(y, received.handle, { stream })
              await stream.synchronize()
              expect(await rowsOf(combinedX)).toEqual(expectedCombine[rank])
            }),
          )
        })
      }),
      { numRuns: repeats(40) },
    )
  })
})

async function expectPlan(
  plan: DispatchPlan,
  inputs: readonly reference.ReferenceInput[],
  rank: number,
  numExperts: number,
): Promise<void> {
  const numRanks = inputs.length
  const layouts = inputs.map((input) => layoutReference.getDispatchLayout(input.topkIdx, { numExperts, numRanks }))
  const inRank = layouts.map(({ isTokenInRank }, source) =>
    inputs[source]!.x.map((_, token) =>
      Array.from({ length: numRanks }, (_, r) => isTokenInRank[token * numRanks + r] === 1),
    ),
  )
  const prefix = layoutReference.getRankPrefixMatrix(layouts.map((layout) => [...layout.numTokensPerRank]))
  expect(await rowsOf(plan.rankPrefixMatrix)).toEqual(prefix)
  expect(await plan.numTokensPerRank.read()).toEqual(layouts[rank]!.numTokensPerRank)
  expect(await plan.numTokensPerExpert.read()).toEqual(layouts[rank]!.numTokensPerExpert)
  expect(await plan.isTokenInRank.read()).toEqual(layouts[rank]!.isTokenInRank)
  const channels = inRank.map((rows) => layoutReference.getChannelPrefixMatrix(rows, numRanks, 3))
  expect(await rowsOf(plan.channelPrefixMatrix)).toEqual(channels[rank])
  expect(await rowsOf(plan.recvChannelPrefixMatrix)).toEqual(channels.map((matrix) => matrix[rank]))
  const { begin, end } = linearPlacement(numExperts, numRanks).rangeOf(rank)
  const perExpert = Array.from({ length: end - begin }, (_, expert) =>
    layouts.reduce((sum, layout) => sum + layout.numTokensPerExpert[begin + expert]!, 0),
  )
  expect(await numbersOf(plan.numRecvTokensPerExpert)).toEqual(perExpert)
  const heads = inRank[rank]!.map((row, token) =>
    row.map((sent, r) =>
      sent
        ? (rank === 0 ? 0 : prefix[rank - 1]![r]!) + inRank[rank]!.slice(0, token).filter((other) => other[r]).length
        : -1,
    ),
  )
  expect(await rowsOf(plan.sendHead)).toEqual(heads)
}
