import { Graph, Tensor } from '@moe-ep/core'
import { linearPlacement } from '@moe-ep/layout'
import { describe, expect, test } from 'vitest'
import { reference } from '../src/index.js'
import {
  codeOf,
  failureOf,
  type Input,
  numbersOf,
  type Rank,
  randomInputs,
  resultsOf,
  resultsTensor,
  toTensors,
  withWorld,
} from './world.js'

const shape = { hidden: 32, topk: 3, numExperts: 7, numTokens: [3, 4, 2, 4], seed: 0 }
const sizes = { hidden: 32, maxTokensPerRank: 4, maxTopk: 3 }
const { numExperts } = shape
const placement = linearPlacement(numExperts, shape.numTokens.length)
/** A deadline that ranks of one machine keep. Who is late comes when the others have given it up. */
const deadline = { timeoutMs: 1000 }

/** What is left of a dispatch without some ranks: they have no tokens, and nobody's tokens reach their experts. */
function without(masked: readonly number[], inputs: readonly Input[]): Input[] {
  return inputs.map(({ x, topkIdx, topkWeights }, rank) => {
    if (masked.includes(rank)) return { x: [], topkIdx: [], topkWeights: [] }
    const left = (id: number): number => (id >= 0 && masked.includes(placement.rankOf(id)) ? -1 : id)
    return { x, topkIdx: topkIdx.map((ids) => ids.map(left)), topkWeights }
  })
}

/** A dispatch and a combine of one rank among those that are there, compared with the reference. */
async function trip(
  { rank, stream, buffer }: Rank,
  inputs: readonly Input[],
  masked: readonly number[],
  options: { readonly timeoutMs?: number; readonly useLogfmt?: boolean } = {},
) {
  const present = without(masked, inputs)
  const received = reference.dispatch(present, numExperts)
  const results = resultsOf(present, numExperts)
  const combined = reference.combine(present, results, { ...shape, ...options, weighted: true })
  const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
  const { packedRecvX, packedRecvCount, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
    ...{ numExperts, topkWeights, useFp8: false, stream, ...options },
  })
  const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
  const { combinedX, event } = buffer.lowLatencyCombine(y, topkIdx, undefined, handle, { stream, ...options })
  await event.synchronize()
  expect(await numbersOf(packedRecvCount)).toEqual(received[rank]!.map((rows) => rows.length))
  expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
}

async function maskOf({ buffer, stream, group }: Rank): Promise<number[]> {
  const status = Tensor.empty([group.worldSize], 'i32', buffer.device)
  buffer.queryMaskBuffer(status, { stream })
  await stream.synchronize()
  return numbersOf(status)
}

test('ranks are masked and taken back between calls; who is masked hears it from its own dispatch', async () => {
  await withWorld(4, { ...sizes, masks: 'manual' }, async (ranks) => {
    for (const [seed, masked] of [[], [1], [], [0, 3], [2], []].entries()) {
      const inputs = randomInputs({ ...shape, seed })
      await Promise.all(
        ranks.map(async (one) => {
          const { rank, stream, buffer } = one
          buffer.cleanMaskBuffer({ stream })
          if (!masked.includes(rank)) {
            for (const other of masked) buffer.updateMaskBuffer(other, true, { stream })
            expect(await maskOf(one)).toEqual(ranks.map((_, i) => Number(masked.includes(i))))
            return trip(one, inputs, masked, { useLogfmt: seed % 2 === 1 })
          }
          const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
          const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
          const error = await failureOf(stream.synchronize())
          expect(`${error.code} ${error.message}`).toMatch(/^ERR_MOE_EP_MISMATCH .*mask of ranks is/)
          buffer.release(handle)
        }),
      )
    }
  })
})

test('ranks that disagree on a mask hear so, by name, and go on once they agree', async () => {
  const inputs = randomInputs({ ...shape, seed: 7 })
  await withWorld(4, { ...sizes, masks: 'manual' }, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer } = one
        if (rank === 1) buffer.updateMaskBuffer(3, true, { stream })
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
        const error = await failureOf(stream.synchronize())
        expect(`${error.code} ${error.message}`).toMatch(
          /^ERR_MOE_EP_MISMATCH .*mask of ranks is 0 on rank 0 and 8 on rank 1/,
        )
        buffer.release(handle)
        buffer.cleanMaskBuffer({ stream })
        await trip(one, inputs, [])
      }),
    )
  })
})

test('where late ranks are masked, one call is enough for ranks that disagree to settle', async () => {
  const inputs = randomInputs({ ...shape, seed: 9 })
  await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
    const fails = async ({ rank, stream, buffer }: Rank): Promise<void> => {
      const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
      const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
      expect(await failureOf(stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
      buffer.release(handle)
    }
    ranks[1]!.buffer.updateMaskBuffer(3, true, ranks[1])
    await Promise.all(ranks.map(fails))
    for (const one of ranks) expect(await maskOf(one)).toEqual([0, 0, 0, one.rank === 3 ? 0 : 1])
    await Promise.all(ranks.map((one) => (one.rank === 3 ? fails(one) : trip(one, inputs, [3]))))
  })
})

test('a rank that does not come in time is masked, and the others go on without it', async () => {
  await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
    const present = ranks.filter(({ rank }) => rank !== 2)
    const first = randomInputs({ ...shape, seed: 11 })
    await Promise.all(ranks.map((one) => trip(one, first, [])))
    for (const seed of [12, 13, 14, 15]) {
      const inputs = randomInputs({ ...shape, seed })
      await Promise.all(present.map((one) => trip(one, inputs, [2], seed === 12 ? { timeoutMs: 1000 } : {})))
      for (const one of present) expect(await maskOf(one)).toEqual([0, 0, 1, 0])
      expect(ranks[0]!.buffer.failure).toBeUndefined()
    }
    // It comes at last, and hears that the others have gone on.
    const { stream, buffer } = ranks[2]!
    const { x, topkIdx, topkWeights } = toTensors(first[2]!, shape)
    const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
    expect(await failureOf(stream.synchronize())).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
    buffer.release(handle)
  })
})

test('a slow rank is masked, the others agree on it and go on, and it hears so when it comes', async () => {
  const [first, second, third] = [31, 32, 33].map((seed) => randomInputs({ ...shape, seed }))
  await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
    await Promise.all(ranks.map((one) => trip(one, first!, [])))
    const inTime = ranks.filter(({ rank }) => rank !== 2)
    const others = Promise.all(
      inTime.map(async (one) => {
        await trip(one, second!, [2], deadline)
        expect(await maskOf(one)).toEqual([0, 0, 1, 0])
        expect(await one.buffer.agree({ ...deadline, stream: one.stream })).toEqual([2])
        await trip(one, third!, [2], deadline)
      }),
    )
    const slow = async ({ stream, buffer }: Rank): Promise<void> => {
      await others
      const { x, topkIdx, topkWeights } = toTensors(second![2]!, shape)
      const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
      const error = await failureOf(stream.synchronize())
      expect(`${error.code} ${error.message}`).toMatch(/^ERR_MOE_EP_MISMATCH .*mask of ranks is 4 on rank 0/)
      buffer.release(handle)
      expect(await failureOf(buffer.agree({ stream }))).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH' })
    }
    await Promise.all([others, slow(ranks[2]!)])
    // Its coming late does them no harm.
    await Promise.all(inTime.map((one) => trip(one, first!, [2], deadline)))
  })
})

test('a rank that is late between dispatch and combine is masked there, and still gets all rows', async () => {
  const inputs = randomInputs({ ...shape, seed: 21 })
  await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
    const received = reference.dispatch(inputs, numExperts)
    const results = received.map((experts) =>
      experts.map((rows) => rows.map((row) => inputs[row.sourceRank]!.x[row.sourceToken]!)),
    )
    const dispatched = await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const result = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, topkWeights, useFp8: false, stream })
        await result.event.synchronize()
        return { ...result, topkIdx }
      }),
    )
    const combine = async ({ rank, stream, buffer }: Rank): Promise<number[]> => {
      const { packedRecvX, topkIdx, handle } = dispatched[rank]!
      const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
      const { combinedX } = buffer.lowLatencyCombine(y, topkIdx, undefined, handle, { stream, ...deadline })
      await stream.synchronize()
      return numbersOf(combinedX)
    }
    const left = inputs.map(({ topkIdx: ids, ...input }) => ({
      ...input,
      topkIdx: ids.map((slots) => slots.map((id) => (id >= 0 && placement.rankOf(id) === 3 ? -1 : id))),
    }))
    const kept = results.map((experts, owner) => (owner === 3 ? experts.map(() => []) : experts))
    const withoutLate = reference.combine(left, kept, { ...shape, weighted: true })
    await Promise.all(
      ranks.slice(0, 3).map(async (one) => {
        expect(await combine(one)).toEqual(withoutLate[one.rank]!.flat())
        expect(await maskOf(one)).toEqual([0, 0, 0, 1])
        expect(await one.buffer.agree({ stream: one.stream, ...deadline })).toEqual([3])
        await trip(one, inputs, [3], deadline)
      }),
    )
    // The others had sent theirs before they waited.
    const whole = reference.combine(inputs, results, { ...shape, weighted: true })
    expect(await combine(ranks[3]!)).toEqual(whole[3]!.flat())
  })
})

test('what masks do not go with is refused', async () => {
  const inputs = randomInputs({ ...shape, seed: 1 })
  await withWorld(4, sizes, async ([one]) => {
    expect(codeOf(() => one!.buffer.updateMaskBuffer(1, true))).toBe('ERR_MOE_EP_UNSUPPORTED')
  })
  await withWorld(4, { ...sizes, masks: 'late' }, async ([one]) => {
    const { buffer } = one!
    const { x, topkIdx } = toTensors(inputs[0]!, shape)
    expect(codeOf(() => buffer.lowLatencyDispatch(x, topkIdx, { numExperts }))).toBe('ERR_MOE_EP_ARGUMENT')
    expect(codeOf(() => buffer.updateMaskBuffer(0, true))).toBe('ERR_MOE_EP_ARGUMENT')
    expect(codeOf(() => buffer.updateMaskBuffer(4, true))).toBe('ERR_MOE_EP_ARGUMENT')
    expect(await maskOf(one!)).toEqual([0, 0, 0, 0])
  })
})

describe('agree', () => {
  const inputs = randomInputs({ ...shape, seed: 21 })

  test.each(['manual', 'late'] as const)("with masks '%s' all mask whom any of them masks", async (masks) => {
    await withWorld(4, { ...sizes, masks }, async (ranks) => {
      expect(await Promise.all(ranks.map(({ buffer, stream }) => buffer.agree({ stream })))).toEqual([[], [], [], []])
      ranks[0]!.buffer.updateMaskBuffer(1, true, ranks[0])
      ranks[2]!.buffer.updateMaskBuffer(3, true, ranks[2])
      const ended = await Promise.allSettled(ranks.map(({ buffer, stream }) => buffer.agree({ stream, slot: 1 })))
      for (const rank of [0, 2]) expect(ended[rank]).toEqual({ status: 'fulfilled', value: [1, 3] })
      for (const rank of [1, 3])
        expect(ended[rank]).toMatchObject({
          reason: {
            code: 'ERR_MOE_EP_MISMATCH',
            message: `low-latency dispatch: rank ${rank} is masked by other ranks`,
          },
        })
      await Promise.all([0, 2].map((rank) => trip(ranks[rank]!, inputs, [1, 3])))
      expect(ranks.map(({ buffer }) => buffer.freeSlots)).toEqual([2, 2, 2, 2])
    })
  })

  test('masks a rank that does not come', async () => {
    await withWorld(4, { ...sizes, masks: 'late' }, async (ranks) => {
      await Promise.all(ranks.map((one) => trip(one, inputs, [])))
      const present = ranks.filter(({ rank }) => rank !== 2)
      const masked = await Promise.all(present.map(({ buffer, stream }) => buffer.agree({ stream, timeoutMs: 500 })))
      expect(masked).toEqual([[2], [2], [2]])
      await Promise.all(present.map((one) => trip(one, inputs, [2])))
    })
  })

  test('ranks that dispatch instead fail by name, and the buffer works on', async () => {
    await withWorld(4, { ...sizes, masks: 'manual' }, async (ranks) => {
      await Promise.all(
        ranks.map(async (one) => {
          const { rank, stream, buffer } = one
          const x = Tensor.zeros([0, 8], 'bf16')
          const topkIdx = Tensor.zeros([0, 1], 'i32')
          const topkWeights = Tensor.zeros([0, 1], 'f32')
          const dispatching = async (): Promise<void> => {
            const options = { numExperts: 4, topkWeights, format: 'bf16', stream } as const
            const { handle } = buffer.lowLatencyDispatch(x, topkIdx, options)
            await stream.synchronize().finally(() => buffer.release(handle))
          }
          const error = await failureOf(rank === 1 ? buffer.agree({ stream }) : dispatching())
          expect(`${error.code} ${error.message}`).toMatch(
            /^ERR_MOE_EP_MISMATCH .*agree\(\) called is 0 on rank 0 and 1 on rank 1/,
          )
          await trip(one, inputs, [])
        }),
      )
    })
  })

  test('needs masks, and no capture', async () => {
    await withWorld(1, sizes, async ([one]) => {
      expect(await failureOf(one!.buffer.agree())).toMatchObject({ code: 'ERR_MOE_EP_UNSUPPORTED' })
    })
    await withWorld(1, { ...sizes, masks: 'late' }, async ([one]) => {
      const { buffer, stream } = one!
      let failure: Promise<unknown> | undefined
      const graph = Graph.capture(stream, () => {
        failure = failureOf(buffer.agree({ stream }))
      })
      expect(await failure).toMatchObject({ code: 'ERR_MOE_EP_CAPTURE' })
      graph.close()
      buffer.close()
      expect(await failureOf(buffer.agree({ stream }))).toMatchObject({ code: 'ERR_MOE_EP_RELEASED' })
    })
  })
})
