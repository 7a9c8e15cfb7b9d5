import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type LowLatencyDispatchResult, reference } from '../src/index.js'
import { formats, optionsOf, scalesOf, wholeRows } from './formats.js'
import {
  type Input,
  type InputShape,
  numbersOf,
  type Rank,
  randomInputs,
  resultsOf,
  resultsTensor,
  toTensors,
  withWorld,
} from './world.js'
import { repeats } from '../../../tooling/vitest/repeats.js'

/** Few tokens of long rows, or many of short ones: what is found by bits of words, and split between blocks of a kernel. */
const sizes = {
  'few tokens': { maxTokensPerRank: 6, maxTopk: 9, hidden: [16, 48, 144, 272, 640], experts: 20, numRuns: 60 },
  'many tokens': { maxTokensPerRank: 75, maxTopk: 32, hidden: [16], experts: 40, numRuns: 12 },
} as const

function casesOf({ maxTokensPerRank, maxTopk, hidden, experts }: (typeof sizes)[keyof typeof sizes]) {
  return fc
    .record({
      numRanks: fc.integer({ min: 1, max: 8 }),
      hidden: fc.constantFrom(...hidden),
      topk: fc.integer({ min: 1, max: maxTopk }),
      numExperts: fc.integer({ min: 1, max: experts }),
      seed: fc.nat(1e6),
      routing: fc.constantFrom('random', 'one expert', 'nowhere'),
      idDtype: fc.constantFrom('i32' as const, 'i64' as const),
      format: fc.constantFrom(...Object.keys(formats)),
      // What the rows' own messages carry, combine is told later.
      weights: fc.constantFrom('at dispatch', 'at combine', 'at combine, a message for each expert'),
      useLogfmt: fc.boolean(),
      hooks: fc.boolean(),
      numSms: fc.constantFrom(undefined, 1, 2, 7),
    })
    .map((shape) => ({ ...shape, hidden: wholeRows(shape.format, shape.hidden) }))
    .chain((shape) =>
      fc.record({
        shape: fc.constant(shape),
        numTokens: fc.array(fc.nat(maxTokensPerRank), { minLength: shape.numRanks, maxLength: shape.numRanks }),
      }),
    )
}

/** Checks rows, scales, counts and handle of one rank. */
async function expectReceived(
  inputs: readonly Input[],
  rows: readonly (readonly reference.ReferenceRow[])[],
  result: LowLatencyDispatchResult,
  format: string,
): Promise<void> {
  const { packedRecvX, packedRecvXScales, packedRecvCount, handle } = result
  const [, capacity, hidden] = packedRecvX.shape as [number, number, number]
  expect(await numbersOf(packedRecvCount)).toEqual(rows.map((ofExpert) => ofExpert.length))
  const srcInfo = await handle.srcInfo.readNumbers()
  const ranges = (await handle.layoutRange!.read()) as BigInt64Array
  const stored = await packedRecvX.read()
  const scaleAt = packedRecvXScales && (await scalesOf(packedRecvXScales))
  rows.forEach((ofExpert, expert) => {
    for (let source = 0; source < inputs.length; source++) {
      const range = ranges[expert * inputs.length + source]!
      const begin = ofExpert.filter((row) => row.sourceRank < source).length
      const count = ofExpert.filter((row) => row.sourceRank === source).length
      expect([range >> 32n, range & 0xffffffffn]).toEqual([BigInt(begin), BigInt(count)])
    }
    ofExpert.forEach(({ sourceRank, sourceToken }, row) => {
      expect(srcInfo[expert * capacity + row]).toBe(sourceToken)
      const at = expert * capacity + row
      const values = inputs[sourceRank]!.x[sourceToken]!
      const cast = reference.castRow(values, formats[format]!.reference)
      // Two elements of fp4 a number.
      const width = format === 'nvfp4' ? hidden / 2 : hidden
      expect(stored.slice(at * width, (at + 1) * width)).toEqual(cast.values)
      expect(scaleAt?.(expert, row)).toEqual(cast.scales && Array.from(cast.scales))
    })
  })
}

describe('dispatch and combine equal the reference bit for bit', () => {
  test.each(Object.entries(sizes))('%s', { timeout: 120_000 }, async (_, limits) => {
    const { maxTokensPerRank, maxTopk, numRuns } = limits
    await fc.assert(
      fc.asyncProperty(casesOf(limits), async ({ shape: c, numTokens }) => {
        const hot = c.numExperts - 1
        const choose = { random: undefined, 'one expert': () => hot, nowhere: () => -1 }[c.routing]
        const shape: InputShape = { ...c, numTokens, choose }
        const weighted = c.weights === 'at dispatch'
        const protocol = c.weights === 'at combine, a message for each expert' ? 'expert' : 'rank'
        const inputs = randomInputs(shape)
        const received = reference.dispatch(inputs, c.numExperts)
        const results = resultsOf(inputs, c.numExperts)
        const combined = reference.combine(inputs, results, { ...c, weighted })
        const oneRank = async ({ rank, stream, buffer }: Rank): Promise<void> => {
          const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape, c.idDtype)
          const { numExperts, hooks } = c
          const options = { stream, returnRecvHook: hooks, ...(c.numSms && { numSms: c.numSms }) }
          const result = buffer.lowLatencyDispatch(x, topkIdx, {
            ...{ numExperts, ...options, ...optionsOf(c.format) },
            ...(weighted && { topkWeights }),
          })
          await result.event.synchronize()
          await result.hook?.().synchronize()
          await expectReceived(inputs, received[rank]!, result, c.format)
          const y = resultsTensor(results[rank]!, result.packedRecvX.shape[1]!, c.hidden)
          const weights = weighted ? undefined : topkWeights
          const { combinedX, event, hook } = buffer.lowLatencyCombine(y, topkIdx, weights, result.handle, {
            ...{ ...options, useLogfmt: c.useLogfmt },
          })
          await event.synchronize()
          await hook?.().synchronize()
          expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
          expect(buffer.freeSlots).toBe(2)
        }
        await withWorld(c.numRanks, { hidden: 640, maxTokensPerRank, maxTopk, protocol }, async (ranks) => {
          // Twice through each slot: nothing of an earlier call may be left.
          for (let repeat = 0; repeat < 4; repeat++) await Promise.all(ranks.map(oneRank))
        })
      }),
      { numRuns: repeats(numRuns) },
    )
  })
})
