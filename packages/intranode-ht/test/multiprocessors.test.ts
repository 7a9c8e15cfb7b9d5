import { Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import type { DispatchPlan } from '../src/index.js'
import { expectRoundTrip, planTrip, type Trip } from './round-trip.js'
import { type InputShape, type Rank, rowsOf, toTensors, withWorld } from './world.js'

// Tokens and pieces of rows enough for many multiprocessors, of a number that none of these divides.
const shape: InputShape = { numTokens: [67, 0, 41], hidden: 520, topk: 5, numExperts: 7, dtype: 'bf16', seed: 5 }

test.each([1, 2, 7, 32])('rows and sums are the same when %i multiprocessors move them', async (numSms) => {
  await withWorld(3, { hidden: shape.hidden, maxTokensPerRank: 67, threads: (rank) => rank + 1 }, async (ranks) => {
    const plans = await expectRoundTrip(ranks, shape, { numSms, scales: true })
    await expectRoundTrip(ranks, shape, { numSms, scales: true, plans })
    const trip = planTrip(shape)
    await Promise.all(ranks.map((rank) => expectWorstCase(rank, trip, numSms)))
    await Promise.all(ranks.map((rank) => expectWorstCase(rank, trip, numSms, plans[rank.rank])))
  })
})

/** Dispatch of worst-case size and combine, compared with the oracle. Nobody reads the results behind the rows that arrived. */
async function expectWorstCase(
  { rank, buffer, stream }: Rank,
  { inputs, received, results, combined }: Trip,
  numSms: number,
  plan?: DispatchPlan,
): Promise<void> {
  const { x, ...routing } = toTensors(inputs[rank]!, shape, stream)
  const { numExperts, hidden, topk } = shape
  const sent = plan === undefined ? { ...routing, numExperts } : { plan }
  const got = buffer.dispatchWorstCase(x, { ...sent, numSms, stream })
  await stream.synchronize()
  const rows = received[rank]!
  const { capacity } = buffer.sizes
  const behind = <Value>(row: Value): Value[] => Array<Value>(capacity - rows.length).fill(row)
  expect(got.recvX.shape[0]).toBe(capacity)
  expect(await rowsOf(got.recvX.slice(0, rows.length))).toEqual(rows.map(({ values }) => values))
  if (plan === undefined) {
    const [none, zeros] = [-1, 0].map((value) => Array<number>(topk).fill(value))
    expect(await rowsOf(got.recvTopkIdx!)).toEqual([...rows.map(({ topkIdx }) => topkIdx), ...behind(none)])
    expect(await rowsOf(got.recvTopkWeights!)).toEqual([
      ...rows.map(({ topkWeights }) => topkWeights),
      ...behind(zeros),
    ])
  }
  const garbage = behind(Array<number>(hidden).fill(Number.NaN))
  const y = Tensor.from([...results[rank]!, ...garbage].flat(), [capacity, hidden], 'bf16', stream.device)
  const { combinedX } = buffer.combine(y, got.handle, { stream, numSms })
  await stream.synchronize()
  expect(await rowsOf(combinedX)).toEqual(combined[rank])
}
