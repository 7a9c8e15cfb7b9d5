import { type ErrorCode, MoeEpError } from '@moe-ep/core'
import { expect } from 'vitest'
import { type LowLatencyCombineOptions, type LowLatencyDispatchOptions, reference } from '../src/index.js'
import { type Input, numbersOf, type Rank, randomInputs, resultsOf, resultsTensor, toTensors } from './world.js'

export const shape = { numTokens: [3, 2, 4], hidden: 32, topk: 3, numExperts: 7, seed: 0 }
/** Nobody may have to wait for the deadline: a rank that did would end as a test that takes too long. */
export const sizes = { hidden: 32, maxTokensPerRank: 4, maxTopk: 3, timeoutMs: 3_600_000 }
export const unsupported = new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'no such GEMM')

/** What ranks hear of a refusal. */
export const refusedBy = (rank: number, code: ErrorCode, call: 'dispatch' | 'combine'): object => ({
  code,
  message: `low-latency ${call}: refused by rank ${rank}: ${code}`,
})

export interface TripOptions {
  /** Weights at the dispatch. @default true */
  readonly weighted?: boolean
  readonly useLogfmt?: boolean
  readonly hooks?: boolean
}

/** The calls of one rank for some inputs, in slot 0. */
export function callsOf({ rank, stream, buffer }: Rank, inputs: readonly Input[], options: TripOptions = {}) {
  const { weighted = true, useLogfmt = false, hooks = false } = options
  const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
  const { numExperts, hidden } = shape
  return {
    dispatch: (more: Partial<LowLatencyDispatchOptions> = {}) =>
      buffer.lowLatencyDispatch(x, topkIdx, {
        ...{ numExperts, useFp8: false, stream, slot: 0, returnRecvHook: hooks },
        ...(weighted && { topkWeights }),
        ...more,
      }),
    combine: ({ handle, packedRecvX }: ReturnType<typeof buffer.lowLatencyDispatch>, more?: LowLatencyCombineOptions) =>
      buffer.lowLatencyCombine(
        resultsTensor(resultsOf(inputs, numExperts)[rank]!, packedRecvX.shape[1]!, hidden),
        topkIdx,
        weighted ? undefined : topkWeights,
        handle,
        { stream, useLogfmt, returnRecvHook: hooks, ...more },
      ),
  }
}

/** A dispatch and a combine that are right: the proof that the buffer works on. */
export async function expectTrip(one: Rank, seed: number, options: TripOptions = {}): Promise<void> {
  const { weighted = true, useLogfmt = false } = options
  const inputs = randomInputs({ ...shape, seed })
  const { dispatch, combine } = callsOf(one, inputs, options)
  const dispatched = dispatch()
  dispatched.hook?.()
  const { combinedX, hook } = combine(dispatched)
  hook?.()
  await one.stream.synchronize()
  const expected = reference.combine(inputs, resultsOf(inputs, shape.numExperts), { ...shape, weighted, useLogfmt })
  expect(await numbersOf(combinedX)).toEqual(expected[one.rank]!.flat())
  expect(one.buffer.freeSlots).toBe(2)
  expect(one.buffer.failure).toBeUndefined()
}
