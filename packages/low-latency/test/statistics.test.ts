import { setTimeout as sleep } from 'node:timers/promises'
import { copyTensor, type Event, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { bf16, expected, shape, sizes } from './few-tokens.js'
import { codeOf, type Input, numbersOf, type Rank, randomInputs, resultsTensor, toTensors, withWorld } from './world.js'

test('statistics grow, and a slot has memory for results', async () => {
  const inputs = randomInputs(shape)
  const { counts, results, combined } = expected(inputs, shape.numExperts, shape.hidden)
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const received = Tensor.zeros([counts[rank]!.length], 'i32')
        const waited = { dispatch: Tensor.zeros([3], 'i64'), combine: Tensor.zeros([3], 'i64') }
        for (let call = 1; call <= 3; call++) {
          const { packedRecvX, handle, event } = buffer.lowLatencyDispatch(x, topkIdx, {
            ...{ ...bf16, stream, cumulativeLocalExpertRecvStats: received, waitRecvCostStats: waited.dispatch },
          })
          await event.synchronize()
          expect(await numbersOf(received)).toEqual(counts[rank]!.map((count) => call * count))
          const y = buffer.getNextLowLatencyCombineBuffer(handle)
          expect(y.shape).toEqual(packedRecvX.shape)
          copyTensor(resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden), y, { stream })
          const { combinedX } = buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, {
            ...{ stream, waitRecvCostStats: waited.combine },
          })
          await stream.synchronize()
          expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
          buffer.cleanLowLatencyBuffer()
        }

        for (const stats of [waited.dispatch, waited.combine]) {
          const ns = await numbersOf(stats)
          expect(ns.every((one) => one >= 0)).toBe(true)
          expect(ns.some((one) => one > 0)).toBe(true)
        }
        const wrong = { waitRecvCostStats: Tensor.zeros([2], 'i64') }
        expect(codeOf(() => buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, ...wrong }))).toBe(
          'ERR_MOE_EP_ARGUMENT',
        )
      }),
    )
  })
})

test('the time that a rank comes late is counted in its column, in dispatch and in combine', async () => {
  const { numExperts } = shape
  await withWorld(3, sizes, async (ranks) => {
    for (const late of ranks.keys()) {
      const inputs = randomInputs({ ...shape, seed: late })
      const { results, combined } = expected(inputs, numExperts, shape.hidden)
      const tensors = inputs.map((input) => toTensors(input, shape))
      const stats = ranks.map(() => ({ dispatch: Tensor.zeros([3], 'i64'), combine: Tensor.zeros([3], 'i64') }))
      // The others wait for each other before they receive, so that there is one rank left to wait for.
      const inTime = ranks.filter(({ rank }) => rank !== late)
      const playLate = async <T extends { event: Event; hook: (() => Event) | undefined }>(send: (one: Rank) => T) => {
        const calls = new Map(inTime.map((one) => [one.rank, send(one)]))
        await Promise.all(inTime.map(({ stream }) => stream.synchronize()))
        for (const { hook } of calls.values()) hook!()
        await sleep(200)
        const its = send(ranks[late]!)
        its.hook!()
        await Promise.all(ranks.map(({ stream }) => stream.synchronize()))
        return ranks.map(({ rank }) => calls.get(rank) ?? its)
      }
      const dispatched = await playLate(({ rank, stream, buffer }) => {
        const { x, topkIdx } = tensors[rank]!
        const waitRecvCostStats = stats[rank]!.dispatch
        return buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, waitRecvCostStats, returnRecvHook: true })
      })
      const sums = await playLate(({ rank, stream, buffer }) => {
        const { topkIdx, topkWeights } = tensors[rank]!
        const { packedRecvX, handle } = dispatched[rank]!
        const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
        const options = { stream, waitRecvCostStats: stats[rank]!.combine, returnRecvHook: true }
        return buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, options)
      })
      for (const { rank } of ranks) expect(await numbersOf(sums[rank]!.combinedX)).toEqual(combined[rank]!.flat())
      for (const { rank } of inTime) {
        for (const ofCall of Object.values(stats[rank]!)) {
          const ns = await numbersOf(ofCall)
          const others = ns.filter((_, peer) => peer !== late)
          expect(ns[late], `rank ${rank} waited ${ns.join(', ')} ns`).toBeGreaterThan(Math.max(...others))
        }
      }
    }
  })
})

test.each([
  ['fp8', { useFp8: true }],
  ['fp8 with a hook', { useFp8: true, returnRecvHook: true }],
  ['rank-major', { layout: 'rank-major' }],
  ['rank-major, fp8, with a hook', { layout: 'rank-major', useFp8: true, returnRecvHook: true }],
] as const)('statistics of received rows grow: %s', async (_, options) => {
  const rounds = [1, 2, 3].map((seed) => randomInputs({ ...shape, seed }))
  const countsOf = (inputs: readonly Input[], rank: number): number[] =>
    ('layout' in options ? reference.dispatchRankMajor : reference.dispatch)(inputs, shape.numExperts)[rank]!.map(
      (rows: readonly object[]) => rows.length,
    )
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        // Not from zero: what is there stays.
        const grown = countsOf(rounds[0]!, rank).map((_, i) => 100 * (i + 1))
        const stats = Tensor.from(grown, [grown.length], 'i32')
        for (const inputs of rounds) {
          const { x, topkIdx } = toTensors(inputs[rank]!, shape)
          const { hook, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
            ...{ ...bf16, stream, cumulativeLocalExpertRecvStats: stats, ...options },
          })
          await stream.synchronize()
          if (hook) {
            expect(await numbersOf(stats)).toEqual(grown)
            await hook().synchronize()
          }
          for (const [i, count] of countsOf(inputs, rank).entries()) grown[i]! += count
          expect(await numbersOf(stats)).toEqual(grown)
          buffer.release(handle)
        }
      }),
    )
  })
})
