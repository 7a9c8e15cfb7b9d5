import { Tensor } from '@moe-ep/core'
import { dequantizeLogFmt10, quantizeLogFmt10 } from '@moe-ep/quant'
import { describe, expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { failureOf, numbersOf, type Rank, randomNumbers, toBf16, withWorld } from './world.js'

/** Wide ranges, and in some rows what is no number, or nothing but zeros. */
function oddRows(count: number, hidden: number): number[][] {
  const random = randomNumbers(hidden)
  const odd = [NaN, Infinity, -Infinity, -0, 3.3e38, 1e-40]
  return Array.from({ length: count }, (_, row) => {
    if (row === 0) return new Array<number>(hidden).fill(0)
    const values = Array.from({ length: hidden }, () => (random() - 0.5) * 2 ** (random() * (row % 3) * 40 - 10))
    if (row > 3) values[Math.floor(random() * hidden)] = odd[row % odd.length]!
    return toBf16(values)
  })
}

describe.each([8, 24, 128, 512, 1000, 1160])('rows of %d', (hidden) => {
  test.each([
    ['a row for each selection', false, 'expert-major'],
    ['sums of ranks', true, 'expert-major'],
    ['rank-major', false, 'rank-major'],
  ] as const)('%s: any numbers, bit for bit', async (_, weighted, layout) => {
    const [tokens, numExperts, topk] = [12, 5, 3]
    const rows = oddRows(tokens, hidden)
    const ids = Array.from({ length: tokens }, (_, token) => [token % 5, (token * 2 + 1) % 5, -1])
    const weights = ids.map((_, token) => [Math.fround(0.3 + token), -0.7, 1].map(Math.fround))
    const inputs = [0, 1, 2].map(() => ({ topkIdx: ids, topkWeights: weights }))
    // Experts that answer with what they got.
    const rankMajor = layout === 'rank-major'
    const results = rankMajor
      ? reference
          .dispatchRankMajor(inputs, numExperts)
          .map((sources) => sources.map((received) => received.map(({ sourceToken }) => rows[sourceToken]!)))
      : reference
          .dispatch(inputs, numExperts)
          .map((experts) => experts.map((received) => received.map(({ sourceToken }) => rows[sourceToken]!)))
    const options = { numExperts, hidden, weighted, useLogfmt: true }
    const combined = (rankMajor ? reference.combineRankMajor : reference.combine)(inputs, results, options)
    const without = (rankMajor ? reference.combineRankMajor : reference.combine)(inputs, results, {
      ...{ ...options, useLogfmt: false },
    })
    expect(combined).not.toEqual(without)
    // Rows of results lie next to each other, so that those too long would be seen in their neighbours.
    await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: topk }, async (ranks) => {
      const oneRank = async ({ rank, stream, buffer }: Rank, hooks: boolean): Promise<void> => {
        const x = Tensor.from(rows.flat(), [tokens, hidden], 'bf16')
        const topkIdx = Tensor.from(ids.flat(), [tokens, topk], 'i64')
        const topkWeights = Tensor.from(weights.flat(), [tokens, topk], 'f32')
        const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
          ...{ numExperts, format: 'bf16', layout, stream, ...(weighted && { topkWeights }) },
        })
        const late = weighted || rankMajor ? undefined : topkWeights
        const { combinedX, hook } = buffer.lowLatencyCombine(packedRecvX, topkIdx, late, handle, {
          ...{ stream, useLogfmt: true, returnRecvHook: hooks },
        })
        hook?.()
        await stream.synchronize()
        expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
      }
      for (const hooks of [false, true]) await Promise.all(ranks.map((rank) => oneRank(rank, hooks)))
    })
  })
})

test('a row that nothing is added to is what quant gives back', async () => {
  const [tokens, hidden] = [6, 264]
  const x = Tensor.from(oddRows(tokens, hidden).flat(), [tokens, hidden], 'bf16')
  const topkIdx = Tensor.from([0, 0, 0, 0, 0, -1], [tokens, 1], 'i64')
  const topkWeights = Tensor.from(new Array<number>(tokens).fill(1), [tokens, 1], 'f32')
  await withWorld(1, { hidden, maxTokensPerRank: tokens, maxTopk: 1 }, async ([one]) => {
    const { stream, buffer } = one as Rank
    const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 1, format: 'bf16', stream })
    const options = { stream, useLogfmt: true }
    const { combinedX } = buffer.lowLatencyCombine(packedRecvX, topkIdx, topkWeights, handle, options)
    const { codes, ranges } = quantizeLogFmt10(x, { stream })
    const back = dequantizeLogFmt10(codes, ranges, { hidden, stream })
    await stream.synchronize()
    const expected = (await numbersOf(back)).fill(0, (tokens - 1) * hidden)
    expect(await numbersOf(combinedX)).toEqual(expected)
  })
})

test('ranks that encode differently hear of it, and the buffer works on', async () => {
  const [tokens, hidden] = [2, 16]
  await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: 1 }, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const x = Tensor.from(new Array<number>(tokens * hidden).fill(3), [tokens, hidden], 'bf16')
        const topkIdx = Tensor.from([0, 2], [tokens, 1], 'i64')
        const topkWeights = Tensor.from([1, 1], [tokens, 1], 'f32')
        const combine = (useLogfmt: boolean, hooked: boolean): Tensor => {
          const options = { numExperts: 3, format: 'bf16', stream } as const
          const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, options)
          const result = buffer.lowLatencyCombine(packedRecvX, topkIdx, topkWeights, handle, {
            ...{ stream, useLogfmt, returnRecvHook: hooked },
          })
          result.hook?.()
          return result.combinedX
        }
        for (const [other, hooked] of [
          [true, false],
          [false, true],
        ] as const) {
          combine(rank === 1 ? other : !other, hooked)
          const error = await failureOf(stream.synchronize())
          expect(`${error.code} ${error.message}`).toMatch(
            new RegExp(`^ERR_MOE_EP_MISMATCH .*combine: useLogfmt is ${!other} on rank 0 and ${other} on rank 1`),
          )
          expect(buffer.freeSlots).toBe(2)
          for (const alike of [true, false]) {
            const combinedX = combine(alike, hooked)
            await stream.synchronize()
            expect(await numbersOf(combinedX)).toEqual(new Array<number>(tokens * hidden).fill(3))
          }
        }
      }),
    )
  })
})
