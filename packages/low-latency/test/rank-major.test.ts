import fc from 'fast-check'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { formats, optionsOf, scalesOf, wholeRows } from './formats.js'
import { numbersOf, randomInputs, type Rank, resultOf, resultsTensor, toTensors, withWorld } from './world.js'

const maxTokensPerRank = 5

const cases = fc.integer({ min: 1, max: 6 }).chain((numRanks) =>
  fc.record({
    format: fc.constantFrom(...Object.keys(formats)),
    numTokens: fc.array(fc.nat(maxTokensPerRank), { minLength: numRanks, maxLength: numRanks }),
    // Of one group of a scale, and of more than four, which are more than one word of packed scales.
    hidden: fc.constantFrom(16, 48, 272, 528),
    topk: fc.integer({ min: 1, max: 6 }),
    numExperts: fc.integer({ min: 1, max: 12 }),
    seed: fc.nat(1e6),
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
    fc.asyncProperty(cases, async (c) => {
      const shape = { ...c, hidden: wholeRows(c.format, c.hidden) }
      const { format, numExperts, hidden, topk, withWeights, useLogfmt, hooks } = shape
      const inputs = randomInputs(shape)
      const received = reference.dispatchRankMajor(inputs, numExperts)
      const results = received.map((sources, rank) =>
        sources.map((rows, source) => rows.map((row) => resultOf(inputs[source]!.x[row.sourceToken]!, rank))),
      )
      const combined = reference.combineRankMajor(inputs, results, shape)
      const oneRank = async ({ rank, stream, buffer }: Rank): Promise<void> => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const result = buffer.lowLatencyDispatch(x, topkIdx, {
          ...{ numExperts, stream, layout: 'rank-major', returnRecvHook: hooks, ...optionsOf(format) },
          ...(withWeights && { topkWeights }),
        })
        await result.event.synchronize()
        await result.hook?.().synchronize()
        const { packedRecvX, packedRecvXScales, packedRecvCount, recvTopkIdx, recvTopkWeights, handle } = result
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
        const stored = await packedRecvX.read()
        const scaleAt = packedRecvXScales && (await scalesOf(packedRecvXScales))
        if (packedRecvXScales && format.startsWith('fp8')) {
          const [, , columns] = packedRecvXScales.shape as [number, number, number]
          expect(packedRecvXScales.strides).toEqual([columns * maxTokensPerRank, 1, maxTokensPerRank])
        }
        // Two elements of fp4 a number.
        const width = format === 'nvfp4' ? hidden / 2 : hidden
        rows.forEach((ofSource, source) =>
          ofSource.forEach(({ sourceToken }, row) => {
            const at = source * maxTokensPerRank + row
            expect(srcInfo[at]).toBe(sourceToken)
            const cast = reference.castRow(inputs[source]!.x[sourceToken]!, formats[format]!.reference)
            expect(stored.slice(at * width, (at + 1) * width)).toEqual(cast.values)
            expect(scaleAt?.(source, row)).toEqual(cast.scales && Array.from(cast.scales))
          }),
        )
        const y = resultsTensor(results[rank]!, maxTokensPerRank, hidden)
        const { combinedX } = buffer.lowLatencyCombine(y, topkIdx, undefined, handle, { stream, useLogfmt })
        await stream.synchronize()
        expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
      }
      await withWorld(inputs.length, { hidden: 544, maxTokensPerRank, maxTopk: 6 }, async (ranks) => {
        for (let repeat = 0; repeat < 3; repeat++) await Promise.all(ranks.map(oneRank))
      })
    }),
    { numRuns: 40 },
  )
})
