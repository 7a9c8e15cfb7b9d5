import { type DType, getDevice, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import {
  bytesOfSpec,
  type ExpertsArguments,
  expertsProblem,
  GroupedExperts,
  moeProblemSize,
  naiveBatchedWeightAndReduce,
  referenceEngines,
} from '../src/index.js'
import { carve, workspaceOf } from '../src/workspaces.js'
import { madeUpExperts, rounded, weightedSum } from './fixture.js'
import { randomValues } from './random.js'

const stream = getDevice('cpu').createStream({ threads: 1 })
afterAll(() => stream.close())

describe('workspaces', () => {
  it('lay tensors apart, each on a cache line of its own', () => {
    const specs = {
      a: { dtype: 'bf16', shape: [3] },
      none: { dtype: 'f32', shape: [0, 5] },
      b: { dtype: 'i64', shape: [2] },
    } as const
    const whole = workspaceOf(specs)
    expect(whole).toEqual({ dtype: 'u8', shape: [128] })
    const { a, none, b } = carve('workspace', Tensor.zeros(whole.shape, 'u8'), specs)
    expect([a.byteOffset, none.byteOffset, b.byteOffset]).toEqual([0, 64, 64])
    expect([a.shape, none.shape, b.shape]).toEqual([[3], [0, 5], [2]])
    expect(bytesOfSpec(specs.b)).toBe(16)
    expect(() =>
      carve('workspace', Tensor.zeros([100], 'u8').slice(0, 10), { a: { dtype: 'f32', shape: [26] } }),
    ).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })

  it('sizes of a call', () => {
    const weights = { w13: Tensor.zeros([2, 6, 4], 'f32'), w2: Tensor.zeros([2, 4, 3], 'f32') }
    const ids = Tensor.zeros([5, 2], 'i32')
    const size = { numLocalExperts: 2, gateAndUp: 6, hidden: 4, topk: 2 }
    expect(moeProblemSize(Tensor.zeros([5, 4], 'bf16'), weights, ids)).toEqual({ ...size, numTokens: 5 })
    expect(moeProblemSize(Tensor.zeros([2, 7, 4], 'bf16'), weights, ids)).toEqual({ ...size, numTokens: 7 })
    for (const shape of [[4, 4], [3, 7, 4], [4]]) {
      expect(() => moeProblemSize(Tensor.zeros(shape, 'bf16'), weights, ids)).toThrow(
        expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
      )
    }
  })

  it('full of garbage, of exactly the asked size, and with the output on top of the first: the same bits', async () => {
    const sizes = { hidden: 16, intermediate: 5, numExperts: 3 }
    const experts = new GroupedExperts(referenceEngines())
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(fc.integer({ min: -1, max: 2 }), { minLength: 2, maxLength: 2 }), { maxLength: 6 }),
        fc.constantFrom<DType>('bf16', 'f32', 'f16'),
        fc.constantFrom<DType>('bf16', 'f32', 'f16'),
        fc.boolean(),
        async (ids, dtype, weightDtype, withCounts) => {
          const { weights, row } = madeUpExperts(sizes, weightDtype, dtype)
          const x = rounded(dtype, randomValues(ids.length * 16, 5))
          const topkWeights = randomValues(ids.length * 2, 6)
          const counts = Int32Array.from({ length: 3 }, (_, expert) => ids.flat().filter((id) => id === expert).length)
          const inputs = {
            ...{ hiddenStates: Tensor.from(x, [ids.length, 16], dtype), weights, stream },
            topkIdx: Tensor.from(ids.flat(), [ids.length, 2], 'i32'),
            topkWeights: Tensor.from(topkWeights, [ids.length, 2], 'f32'),
            ...(withCounts && { tokens: { numTokens: Tensor.from(counts, [3], 'i32'), numTokensHost: counts } }),
          }
          const shapes = experts.workspaceShapes(expertsProblem(inputs, dtype))
          const common = Tensor.zeros([Math.max(bytesOfSpec(shapes.workspace13), bytesOfSpec(shapes.output))], 'u8')
          const workspace2 = Tensor.zeros(shapes.workspace2.shape, 'u8')
          for (const garbage of [common, workspace2]) garbage.data.fill(0xff as never)
          const output = new Tensor({ memory: common.memory, ...shapes.output })
          const args: ExpertsArguments = { ...inputs, output, workspaces: { workspace13: common, workspace2 } }
          await experts.apply(args)
          await stream.synchronize()
          const expected = ids.flatMap((slots, token) => {
            const chosen = slots.map((id, slot) => ({ id, weight: topkWeights[token * 2 + slot]! }))
            return weightedSum(x.subarray(token * 16, (token + 1) * 16), chosen, { row, outDtype: dtype })
          })
          expect(Array.from(output.toNumbers())).toEqual(expected)
        },
      ),
      { numRuns: 40 },
    )
    await experts.close()
  })
})

describe('naiveBatchedWeightAndReduce', () => {
  it('takes rows by token and slot, those of its own experts only, and never reads beyond the counts', async () => {
    // Rank 1 of 2 owns the global experts 2 and 3.
    const topkIdx = Tensor.from([2, 3, 0, 2, -1, 3, 3, 3], [4, 2], 'i64')
    const topkWeights = Tensor.from([0.5, 2, NaN, 3, NaN, 1, 1, 4], [4, 2], 'f32')
    const expertOutput = Tensor.from([1, 10, NaN, NaN, 2, 3, 4, 5], [2, 4, 1], 'bf16')
    const sum = naiveBatchedWeightAndReduce({ rank: 1, numExperts: 4 }).apply({
      expertOutput,
      topkIdx,
      topkWeights,
      stream,
    })
    await stream.synchronize()
    expect(Array.from(sum.toNumbers())).toEqual([0.5 * 1 + 2 * 2, 3 * 10, 3, 1 * 4 + 4 * 5])
    const output = Tensor.zeros([4, 1], 'f32')
    naiveBatchedWeightAndReduce({ rank: 1, numExperts: 4 }).apply({
      output,
      expertOutput,
      topkIdx,
      topkWeights,
      stream,
    })
    await stream.synchronize()
    expect(Array.from(output.toNumbers())).toEqual([4.5, 30, 3, 24])
  })

  it('refuses rows that are not batched', () => {
    const topkIdx = Tensor.zeros([1, 1], 'i32')
    const args = {
      expertOutput: Tensor.zeros([1, 1], 'bf16'),
      topkIdx,
      topkWeights: Tensor.zeros([1, 1], 'f32'),
      stream,
    }
    expect(() => naiveBatchedWeightAndReduce({ numExperts: 1 }).apply(args)).toThrow(
      expect.objectContaining({ details: { argument: 'expertOutput' } }),
    )
  })
})
