import fc from 'fast-check'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { numbersOf, randomInputs, type Rank, resultOf, resultsTensor, toTensors, withWorld } from './world.js'

const maxTokensPerRank = 5

const cases = fc.integer({ min: 1, max: 6 }).chain((numRanks) =>
  fc.record({
    numTokens: fc.array(fc.nat(maxTokensPerRank), { minLength: numRanks, maxLength: numRanks }),
    hidden: fc.constantFrom(16, 48, 272),
    topk: fc.integer({ min: 1, max: 6 }),
    numExperts: fc.integer({ min: 1, max: 12 }),
    seed: fc.nat(1e6),
    useFp8: fc.boolean(),
    withWeights: fc.boolean(),
    useLogfmt: fc.boolean(),
    hooks: fc.boolean(),
  }),
)

/** Lists of rows with what is behind the last one: [ranks, maxTokensPerRank, topk] flat. */
function padded(rows: readonly (readonly (readonly number[])[])[], topk: number, fill: number): number[] {
  return rows.flatMap((ofSource) =>
    ofSource.flat().concat(new Array<number>((maxTokensPerRank - ofSource.length) * topk).fill(fill)),
  )
}

test('rank-major dispatch and combine equal the reference bit for bit', { timeout: 120_000 }, async () => {
  await fc.assert(
    fc.asyncProperty(cases, async (shape) => {
      const { numExperts, hidden, topk, useFp8, withWeights, useLogfmt, hooks } = shape
      const inputs = randomInputs(shape)
      const received = reference.dispatchRankMajor(inputs, numExperts)
      const results = received.map((sources, rank) =>
        sources.map((rows, source) => rows.map((row) => resultOf(inputs[source]!.x[row.sourceToken]!, rank))),
      )
      const combined = reference.combineRankMajor(inputs, results, shape)
      const oneRank = async ({ rank, stream, buffer }: Rank): Promise<void> => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const result = buffer.lowLatencyDispatch(x, topkIdx, {
          ...{ numExperts, useFp8, stream, layout: 'rank-major', returnRecvHook: hooks },
          ...(withWeights && { topkWeights }),
        })
        await result.event.synchronize()
        await result.hook?.().synchronize()
        const { packedRecvX, packedRecvCount, recvTopkIdx, recvTopkWeights, handle } = result
        const rows = received[rank]!
        expect(packedRecvX.shape).toEqual([inputs.length, maxTokensPerRank, hidden])
        expect(await numbersOf(packedRecvCount)).toEqual(rows.map((ofSource) => ofSource.length))
        expect(await numbersOf(recvTopkIdx!)).toEqual(
          padded(
            rows.map((ofSource) => ofSource.map((row) => row.topkIdx)),
            topk,
            -1,
          ),
        )
        expect(recvTopkWeights && (await numbersOf(recvTopkWeights))).toEqual(
          withWeights
            ? padded(
                rows.map((ofSource) => ofSource.map((row) => row.topkWeights)),
                topk,
                0,
              )
            : undefined,
        )
        const srcInfo = await numbersOf(handle.srcInfo)
        const stored = useFp8 ? [] : await numbersOf(packedRecvX)
        rows.forEach((ofSource, source) =>
          ofSource.forEach(({ sourceToken }, row) => {
            const at = source * maxTokensPerRank + row
            expect(srcInfo[at]).toBe(sourceToken)
            if (useFp8) return
            expect(stored.slice(at * hidden, (at + 1) * hidden)).toEqual(inputs[source]!.x[sourceToken])
          }),
        )
        const y = resultsTensor(results[rank]!, maxTokensPerRank, hidden)
        const { combinedX } = buffer.lowLatencyCombine(y, topkIdx, undefined, handle, { stream, useLogfmt })
        await stream.synchronize()
        expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
      }
      await withWorld(inputs.length, { hidden: 272, maxTokensPerRank, maxTopk: 6 }, async (ranks) => {
        for (let repeat = 0; repeat < 3; repeat++) await Promise.all(ranks.map(oneRank))
      })
    }),
    { numRuns: 40 },
  )
})
