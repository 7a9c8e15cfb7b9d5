import { type DType, encode, Tensor } from '@moe-ep/core'
import { permute, unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { maxGroupedRows } from '../src/index.js'
import {
  type InputShape,
  numbersOf,
  overwrite,
  type Rank,
  randomInputs,
  randomNumbers,
  toTensors,
  withWorld,
} from './world.js'

const shapes = fc
  .record({
    numRanks: fc.integer({ min: 1, max: 6 }),
    // Rows of several pieces, or many rows: what GPUs cut their work into.
    size: fc.constantFrom(
      ...[8, 136].map((hidden) => ({ hidden, maxTokens: 70 })),
      ...[640, 4104].map((hidden) => ({ hidden, maxTokens: 9 })),
    ),
    topk: fc.oneof(fc.integer({ min: 1, max: 6 }), fc.constantFrom(17, 32)),
    numSms: fc.constantFrom(0, 1, 2, 5, 40),
    numExperts: fc.integer({ min: 1, max: 14 }),
    dtype: fc.constantFrom<DType>('bf16', 'f16', 'f32'),
    expertAlignment: fc.constantFrom(1, 4, 16),
    fill: fc.constantFrom(-1 as const, 'expert' as const),
    seed: fc.nat(1e6),
  })
  .chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      numTokens: fc.array(fc.nat(shape.size.maxTokens), { minLength: shape.numRanks, maxLength: shape.numRanks }),
    }),
  )

const bytesOf = async (tensor: Tensor): Promise<Buffer> => {
  const { buffer, byteOffset, byteLength } = await tensor.read()
  return Buffer.from(new Uint8Array(buffer, byteOffset, byteLength))
}

/** Elements of a matrix that lies column by column, row by row. */
async function stridedRows(tensor: Tensor): Promise<number[]> {
  const { memory, byteOffset, shape, strides } = tensor
  const columns = new Tensor({ memory, dtype: 'f32', shape: [shape[1]!, strides[1]!], byteOffset })
  const values = await numbersOf(columns)
  return Array.from({ length: shape[0]! * shape[1]! }, (_, i) => {
    const [row, column] = [Math.floor(i / shape[1]!), i % shape[1]!]
    return values[row * strides[0]! + column * strides[1]!]!
  })
}

describe('grouped dispatch and combine', () => {
  test('are what permute and unpermute make of the plain ones, bit for bit', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(
        shapes,
        async ({ shape: { numRanks, size, expertAlignment, fill, numSms, ...rest }, numTokens }) => {
          const { hidden, maxTokens } = size
          const shape: InputShape = { ...rest, hidden, numTokens }
          const { topk, numExperts } = shape
          const inputs = randomInputs(shape)
          const capacity = maxGroupedRows({ maxTokensPerRank: maxTokens, numRanks, numExperts, topk, expertAlignment })
          const options = {
            hidden,
            maxTokensPerRank: maxTokens,
            maxElementBytes: 4,
            capacity,
            threads: (rank: number) => 1 + (rank % 2),
          }
          await withWorld(numRanks, options, async (ranks) => {
            await Promise.all(
              ranks.map((rank) => compare(rank, shape, inputs[rank.rank]!, { expertAlignment, fill, numSms })),
            )
          })
        },
      ),
      { numRuns: 30 },
    )
  })
})

async function compare(
  { rank, buffer, stream }: Rank,
  shape: InputShape,
  input: ReturnType<typeof randomInputs>[number],
  layout: { readonly expertAlignment: number; readonly fill: -1 | 'expert'; readonly numSms: number },
): Promise<void> {
  const { numExperts, hidden, dtype } = shape
  const { x, topkIdx, topkWeights } = toTensors(input, shape)
  const random = randomNumbers(shape.seed + rank)
  const columns = Math.ceil(hidden / 128)
  const scales = Tensor.from(Array.from({ length: x.shape[0]! * columns }, random), [x.shape[0]!, columns], 'f32')
  const common = { topkIdx, topkWeights, numExperts, scales, stream }

  const plain = await buffer.dispatch(x, common)
  const grouped = await buffer.dispatchGrouped(x, { ...common, ...layout, zeroPadding: true })
  await stream.synchronize()
  const numLocalExperts = plain.numRecvTokensPerExpert.length
  const { fill, expertAlignment } = layout
  const permuted =
    numLocalExperts === 0
      ? undefined
      : permute(plain.recvX, {
          ...{
            topkIdx: plain.recvTopkIdx!,
            scales: plain.recvXScales!,
            numLocalExperts,
            alignment: expertAlignment,
            fill,
          },
          ...{ expertNumTokensHost: plain.numRecvTokensPerExpert, zeroPadding: true, stream },
        })
  await stream.synchronize()
  expect(grouped.recvX.shape[0]).toBe(permuted?.rows.shape[0] ?? 0)
  expect([...grouped.numRecvTokensPerExpert]).toEqual(
    [...plain.numRecvTokensPerExpert].map((count) => Math.ceil(count / expertAlignment) * expertAlignment),
  )
  if (permuted !== undefined) {
    expect((await bytesOf(grouped.recvX)).equals(await bytesOf(permuted.rows))).toBe(true)
    expect((await bytesOf(grouped.expertIds)).equals(await bytesOf(permuted.expertIds))).toBe(true)
    expect(await stridedRows(grouped.recvXScales!)).toEqual(await numbersOf(permuted.scales!))
  }

  // A cached plan gives the same rows again, in a slot of its own.
  const results = Array.from({ length: grouped.recvX.numel }, () => random() - 0.5)
  const y = Tensor.copyOf(encode(dtype, results), grouped.recvX.shape, dtype)
  const rows = await bytesOf(grouped.recvX)
  const { numSms } = layout
  const combined = buffer.combineGrouped(y, grouped.handle, { stream, numSms })
  const again = await buffer.dispatchGrouped(x, { ...common, ...layout, plan: grouped.handle.plan, zeroPadding: true })
  await stream.synchronize()
  expect((await bytesOf(again.recvX)).equals(rows)).toBe(true)
  // Results that lie where the rows were: on a GPU sums take their place.
  const inPlace = buffer.combineInput(again.handle, { dtype })
  overwrite(inPlace, y, stream)
  const combinedInPlace = buffer.combineGrouped(inPlace, again.handle, { stream, topkWeights, numSms })

  const reduced =
    permuted === undefined
      ? Tensor.zeros([plain.recvX.shape[0]!, hidden], dtype)
      : unpermuteAndReduce(y, {
          ...{ topkIdx: plain.recvTopkIdx!, topkWeights: plain.recvTopkWeights!, stream },
          inversePermutation: permuted.inversePermutation,
        })
  const expected = buffer.combine(reduced, plain.handle, { stream, numSms })
  await stream.synchronize()
  expect((await bytesOf(combined.combinedX)).equals(await bytesOf(expected.combinedX))).toBe(true)
  expect((await bytesOf(combinedInPlace.combinedX)).equals(await bytesOf(expected.combinedX))).toBe(true)
}
