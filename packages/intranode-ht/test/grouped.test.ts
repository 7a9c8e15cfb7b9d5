import { type DType, dtypes, encode, Tensor } from '@moe-ep/core'
import { permute, reference as permuteReference, unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type GroupedDispatchResult, maxGroupedRows, reference } from '../src/index.js'
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
import { repeats } from '../../../tooling/vitest/repeats.js'

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

// Rows that were quantised before they are sent. The 1, 2 or 23 scales of a row take no multiple of 16 bytes.
const quantised = fc
  .record({
    numRanks: fc.integer({ min: 1, max: 8 }),
    hidden: fc.constantFrom(16, 144, 2880),
    topk: fc.integer({ min: 1, max: 6 }),
    numSms: fc.constantFrom(0, 1, 2, 5),
    numExperts: fc.integer({ min: 1, max: 14 }),
    dtype: fc.constantFrom<DType>('fp8e4m3', 'fp8e5m2'),
    routing: fc.constantFrom('random', 'one expert', 'nowhere'),
    expertAlignment: fc.constantFrom(undefined, 1, 4, 16),
    fill: fc.constantFrom(-1 as const, 'expert' as const),
    seed: fc.nat(1e6),
  })
  .chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      numTokens: fc.array(fc.nat(9), { minLength: shape.numRanks, maxLength: shape.numRanks }),
    }),
  )

interface Layout {
  /** @default that of the calls */
  readonly expertAlignment?: number | undefined
  readonly fill: -1 | 'expert'
  readonly numSms: number
}

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

/** One scale for each 128 elements of a rank's rows, and for what is left of them. */
function scalesOf({ numTokens, hidden, seed }: InputShape, rank: number): number[][] {
  const random = randomNumbers(seed + rank)
  const columns = Math.ceil(hidden / 128)
  return Array.from({ length: numTokens[rank]! }, () =>
    Array.from({ length: columns }, () => Math.fround(random() / 448)),
  )
}

describe('grouped dispatch and combine', () => {
  test('are what permute and unpermute make of the plain ones, bit for bit', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(
        shapes,
        async ({ shape: { numRanks: _, size, expertAlignment, fill, numSms, ...rest }, numTokens }) => {
          const shape: InputShape = { ...rest, hidden: size.hidden, numTokens }
          await expectSame(shape, { expertAlignment, fill, numSms }, size.maxTokens)
        },
      ),
      { numRuns: repeats(30) },
    )
  })

  test('are so for rows that were quantised before', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(
        quantised,
        async ({ shape: { numRanks: _, routing, expertAlignment, fill, numSms, ...rest }, numTokens }) => {
          const hot = rest.numExperts - 1
          const choose = routing === 'one expert' ? () => hot : routing === 'nowhere' ? () => -1 : undefined
          const shape: InputShape = { ...rest, numTokens, ...(choose && { choose }) }
          await expectSame(shape, { expertAlignment, fill, numSms }, 9)
        },
      ),
      { numRuns: repeats(30) },
    )
  })

  const base: InputShape = { numTokens: [9, 5, 7], hidden: 144, topk: 4, numExperts: 7, dtype: 'fp8e4m3', seed: 21 }
  test.each<[string, Partial<InputShape>]>([
    ['no tokens at all', { numTokens: [0, 0, 0] }],
    ['tokens on one rank only', { numTokens: [0, 9, 0] }],
    ['all selections of one expert', { choose: () => 6 }],
    ['no selections', { choose: () => -1 }],
    ['selections of which half are none', { choose: (value) => (value < 0.5 ? -1 : Math.floor(value * 7)) }],
    ['experts that a token selects again and again', { topk: 8, choose: (value) => Math.floor(value * 2) }],
    ['7 ranks', { numTokens: [4, 9, 5, 0, 6, 1, 7] }],
    ['8 ranks, one without experts', { numTokens: [4, 9, 5, 0, 6, 1, 7, 3] }],
    ['8 ranks of several experts', { numTokens: [4, 9, 5, 0, 6, 1, 7, 3], numExperts: 19 }],
  ])('are so for quantised rows at the default alignment: %s', async (_, changes) => {
    const layout: Layout = { fill: -1, numSms: 0 }
    for (const hidden of [144, 2880]) await expectSame({ ...base, hidden, ...changes }, layout, 9)
  })
})

/** Compares on all ranks of a world. */
async function expectSame(shape: InputShape, layout: Layout, maxTokensPerRank: number): Promise<void> {
  const { hidden, topk, numExperts, numTokens } = shape
  const numRanks = numTokens.length
  const { expertAlignment = 128 } = layout
  const capacity = maxGroupedRows({ maxTokensPerRank, numRanks, numExperts, topk, expertAlignment })
  const threads = (rank: number): number => 1 + (rank % 2)
  const inputs = randomInputs(shape)
  await withWorld(numRanks, { hidden, maxTokensPerRank, maxElementBytes: 4, capacity, threads }, async (ranks) => {
    await Promise.all(ranks.map((rank) => compare(rank, shape, inputs, layout)))
  })
}

async function compare(
  { rank, buffer, stream }: Rank,
  shape: InputShape,
  inputs: readonly reference.ReferenceInput[],
  { expertAlignment, fill, numSms }: Layout,
): Promise<void> {
  const { numExperts, hidden, dtype } = shape
  const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape, stream)
  const columns = Math.ceil(hidden / 128)
  const scales = Tensor.from(scalesOf(shape, rank).flat(), [x.shape[0]!, columns], 'f32', stream.device)
  const common = { topkIdx, topkWeights, numExperts, scales, stream }
  const layout = { fill, numSms, ...(expertAlignment !== undefined && { expertAlignment }) }
  const alignment = expertAlignment ?? 128

  const plain = await buffer.dispatch(x, common)
  const grouped = await buffer.dispatchGrouped(x, { ...common, ...layout, zeroPadding: true })
  await stream.synchronize()
  const numLocalExperts = plain.numRecvTokensPerExpert.length
  const permuted =
    numLocalExperts === 0
      ? undefined
      : permute(plain.recvX, {
          ...{ topkIdx: plain.recvTopkIdx!, scales: plain.recvXScales!, scaleLayout: 'column', numLocalExperts, fill },
          ...(expertAlignment !== undefined && { alignment: expertAlignment }),
          ...{ expertNumTokensHost: plain.numRecvTokensPerExpert, zeroPadding: true, stream },
        })
  await stream.synchronize()
  expect(grouped.recvX.shape[0]).toBe(permuted?.rows.shape[0] ?? 0)
  expect([...grouped.numRecvTokensPerExpert]).toEqual(
    [...plain.numRecvTokensPerExpert].map((count) => Math.ceil(count / alignment) * alignment),
  )
  if (permuted !== undefined) {
    expect((await bytesOf(grouped.recvX)).equals(await bytesOf(permuted.rows))).toBe(true)
    expect((await bytesOf(grouped.expertIds)).equals(await bytesOf(permuted.expertIds))).toBe(true)
    expect(await stridedRows(grouped.recvXScales!)).toEqual(await stridedRows(permuted.scales!))
    expect(grouped.recvXScales!.strides).toEqual(permuted.scales!.strides)
  }
  await expectReference(grouped, rank, shape, inputs, { alignment, fill })

  // A cached plan gives the same rows again, in a slot of its own.
  const random = randomNumbers(shape.seed - 1 - rank)
  const results = Array.from({ length: grouped.recvX.numel }, () => random() - 0.5)
  // Experts give wider elements than they get quantised.
  const resultDtype = dtypes[dtype].bits === 8 ? 'bf16' : dtype
  const y = Tensor.copyOf(encode(resultDtype, results), grouped.recvX.shape, resultDtype, stream.device)
  const [rows, rowScales] = [await bytesOf(grouped.recvX), await stridedRows(grouped.recvXScales!)]
  const combined = buffer.combineGrouped(y, grouped.handle, { stream, numSms })
  const again = await buffer.dispatchGrouped(x, { ...common, ...layout, plan: grouped.handle.plan, zeroPadding: true })
  await stream.synchronize()
  expect((await bytesOf(again.recvX)).equals(rows)).toBe(true)
  expect(await stridedRows(again.recvXScales!)).toEqual(rowScales)
  // Results that lie where the rows were: on a GPU sums take their place.
  const inPlace = buffer.combineInput(again.handle, { dtype: resultDtype })
  overwrite(inPlace, y, stream)
  const combinedInPlace = buffer.combineGrouped(inPlace, again.handle, { stream, topkWeights, numSms })

  const reduced =
    permuted === undefined
      ? Tensor.zeros([plain.recvX.shape[0]!, hidden], resultDtype, stream.device)
      : unpermuteAndReduce(y, {
          ...{ topkIdx: plain.recvTopkIdx!, topkWeights: plain.recvTopkWeights!, stream },
          inversePermutation: permuted.inversePermutation,
        })
  const expected = buffer.combine(reduced, plain.handle, { stream, numSms })
  await stream.synchronize()
  expect((await bytesOf(combined.combinedX)).equals(await bytesOf(expected.combinedX))).toBe(true)
  expect((await bytesOf(combinedInPlace.combinedX)).equals(await bytesOf(expected.combinedX))).toBe(true)
}

/** Compares a rank's grouped rows with the oracles of a dispatch and of a permute after it. */
async function expectReference(
  { recvX, recvXScales, expertIds, numRecvTokensPerExpert }: GroupedDispatchResult,
  rank: number,
  shape: InputShape,
  inputs: readonly reference.ReferenceInput[],
  layout: { readonly alignment: number; readonly fill: -1 | 'expert' },
): Promise<void> {
  const { dtype, hidden, numExperts } = shape
  const arrived = reference.dispatch(inputs, numExperts)[rank]!
  const scales = inputs.map((_, source) => scalesOf(shape, source))
  const toBytes = (values: readonly number[]): Buffer => {
    const { buffer, byteOffset, byteLength } = encode(dtype, values)
    return Buffer.from(buffer, byteOffset, byteLength)
  }
  const rows = arrived.map(({ values }) => toBytes(values))
  const expected = permuteReference.permute(rows, {
    topkIdx: arrived.map(({ topkIdx }) => topkIdx),
    scales: arrived.map(({ sourceRank, sourceToken }) => scales[sourceRank]![sourceToken]!),
    numLocalExperts: numRecvTokensPerExpert.length,
    ...layout,
  })
  const [zeros, zeroScales] = [toBytes(Array<number>(hidden).fill(0)), Array<number>(Math.ceil(hidden / 128)).fill(0)]
  expect((await bytesOf(recvX)).equals(Buffer.concat(expected.rows.map((row) => row ?? zeros)))).toBe(true)
  expect(await stridedRows(recvXScales!)).toEqual(expected.scales.flatMap((row) => row ?? zeroScales))
  expect(await numbersOf(expertIds)).toEqual(expected.expertIds)
}
