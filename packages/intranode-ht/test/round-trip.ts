import { type DType, decode, dtypes, encode, Tensor } from '@moe-ep/core'
import { expect } from 'vitest'
import { type DispatchPlan, type DispatchResult, reference } from '../src/index.js'
import {
  type InputShape,
  type Rank,
  randomInputs,
  randomNumbers,
  rowsOf,
  toTensors,
  numbersOf,
  overwrite,
} from './world.js'

/** How a round trip is made; all ranks alike. */
export interface TripOptions {
  readonly idDtype?: 'i32' | 'i64'
  readonly weights?: boolean
  /** Sends f32 scales of ceil(hidden / 128) columns along. */
  readonly scales?: boolean
  /** dtype of what is combined. @default that of the rows, bf16 for fp8 rows */
  readonly combineDtype?: DType
  /** Results are written where combine reads them, instead of being copied there. */
  readonly zeroCopy?: boolean
  /** One a rank, of a dispatch with the same routing. */
  readonly plans?: readonly DispatchPlan[]
  readonly slot?: number
  readonly numSms?: number
  /** Deadline of dispatch. @default the buffer's */
  readonly timeoutMs?: number
}

/** Everything that the oracle says of one round trip. */
export interface Trip {
  readonly shape: InputShape
  readonly options: TripOptions
  readonly inputs: readonly reference.ReferenceInput[]
  readonly received: readonly (readonly reference.ReferenceRow[])[]
  /** By rank and token. */
  readonly scales: readonly (readonly number[][])[]
  /** What the experts of each rank make of its rows: it depends on the row and on the rank. */
  readonly results: readonly (readonly (readonly number[])[])[]
  readonly combined: readonly (readonly (readonly number[])[])[]
  readonly combineDtype: DType
}

/** Random rows and what must become of them. */
export function planTrip(shape: InputShape, options: TripOptions = {}): Trip {
  const inputs = randomInputs(shape)
  const combineDtype = options.combineDtype ?? (dtypes[shape.dtype].bits === 8 ? 'bf16' : shape.dtype)
  const received = reference.dispatch(inputs, shape.numExperts)
  const random = randomNumbers(shape.seed + 1)
  const columns = Math.ceil(shape.hidden / 128)
  const scales = inputs.map(({ x }) => x.map(() => Array.from({ length: columns }, () => Math.fround(random()))))
  const results = received.map((rows, rank) =>
    rows.map(({ values }) =>
      roundTo(
        combineDtype,
        values.map((value) => value * (rank + 0.5)),
      ),
    ),
  )
  const { numTokens, hidden } = shape
  const combined = reference.combine(received, results, { numTokens, hidden, dtype: combineDtype })
  return { shape, options, inputs, received, scales, results, combined, combineDtype }
}

export function roundTo(dtype: DType, values: readonly number[]): number[] {
  return Array.from(decode(dtype, encode(dtype, values)))
}

/** This rank's dispatch of a trip. */
export function startTrip(
  { rank, buffer, stream }: Rank,
  { shape, options, inputs, scales }: Trip,
): Promise<DispatchResult> {
  const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape, stream, options.idDtype)
  const plan = options.plans?.[rank]
  return buffer.dispatch(x, {
    ...(plan === undefined
      ? { topkIdx, numExperts: shape.numExperts, ...(options.weights !== false && { topkWeights }) }
      : { plan }),
    ...(options.scales && {
      scales: Tensor.from(scales[rank]!.flat(), [x.shape[0]!, Math.ceil(shape.hidden / 128)], 'f32', stream.device),
    }),
    ...(options.slot !== undefined && { slot: options.slot }),
    ...(options.numSms !== undefined && { numSms: options.numSms }),
    ...(options.timeoutMs !== undefined && { timeoutMs: options.timeoutMs }),
    stream,
  })
}

/** Waits for the rows and compares all that has arrived with the oracle. */
export async function checkRows({ rank }: Rank, trip: Trip, got: DispatchResult): Promise<void> {
  await got.event.synchronize()
  const rows = trip.received[rank]!
  const { options } = trip
  expect(await rowsOf(got.recvX)).toEqual(rows.map((row) => row.values))
  expect(await numbersOf(got.handle.recvSrcIdx)).toEqual(rows.map((row) => row.sourceToken))
  expect(got.recvTopkIdx && (await rowsOf(got.recvTopkIdx))).toEqual(
    options.plans ? undefined : rows.map((row) => row.topkIdx),
  )
  expect(got.recvTopkWeights && (await rowsOf(got.recvTopkWeights))).toEqual(
    options.plans || options.weights === false ? undefined : rows.map((row) => row.topkWeights),
  )
  expect(got.recvXScales && (await rowsOf(got.recvXScales))).toEqual(
    options.scales ? rows.map((row) => trip.scales[row.sourceRank]![row.sourceToken]) : undefined,
  )
}

/** Brings the experts' results home and compares the sums with the oracle. */
export async function finishTrip(
  { rank, buffer, stream }: Rank,
  trip: Trip,
  { handle }: DispatchResult,
): Promise<void> {
  const { results, combineDtype, options, shape } = trip
  const values = results[rank]!.flat()
  let y = Tensor.from(values, [results[rank]!.length, shape.hidden], combineDtype, stream.device)
  if (options.zeroCopy) {
    const place = buffer.combineInput(handle, { dtype: combineDtype })
    overwrite(place, y, stream)
    y = place
  }
  const { numSms } = options
  const { combinedX, event } = buffer.combine(y, handle, { stream, ...(numSms !== undefined && { numSms }) })
  expect(handle.lease.active).toBe(false)
  await event.synchronize()
  expect(await rowsOf(combinedX)).toEqual(trip.combined[rank])
}

/** Dispatch and combine on all ranks at once, everything compared. Gives each rank's plan. */
export async function expectRoundTrip(
  ranks: readonly Rank[],
  shape: InputShape,
  options: TripOptions = {},
): Promise<DispatchPlan[]> {
  const trip = planTrip(shape, options)
  return Promise.all(
    ranks.map(async (rank) => {
      const got = await startTrip(rank, trip)
      await checkRows(rank, trip, got)
      await finishTrip(rank, trip, got)
      return got.handle.plan
    }),
  )
}
