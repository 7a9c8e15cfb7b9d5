import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type LowLatencyDispatchOptions, type LowLatencyDispatchResult, reference } from '../src/index.js'
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

/** What dispatch is told, and what the reference is. */
const formats: Record<string, { options: Partial<LowLatencyDispatchOptions>; reference: reference.ReferenceFormat }> = {
  bf16: { options: { useFp8: false }, reference: { format: 'bf16' } },
  fp8: { options: {}, reference: { format: 'fp8' } },
  'fp8, powers of two': {
    options: { useFp8: true, roundScale: true },
    reference: { format: 'fp8', roundScale: true },
  },
  'fp8, packed': { options: { format: 'fp8', useUe8m0: true }, reference: { format: 'fp8', useUe8m0: true } },
  mxfp8: { options: { format: 'mxfp8' }, reference: { format: 'mxfp8' } },
  nvfp4: { options: { format: 'nvfp4' }, reference: { format: 'nvfp4', xGlobalScale: 1000 } },
}

/** Few tokens of long rows, or many of short ones: what is found by bits of words, and split between blocks of a kernel. */
const sizes = {
  'few tokens': { maxTokensPerRank: 6, maxTopk: 9, hidden: [16, 48, 144, 272, 640], experts: 20, numRuns: 60 },
  'many tokens': { maxTokensPerRank: 75, maxTopk: 32, hidden: [16], experts: 40, numRuns: 12 },
} as const

function casesOf({ maxTokensPerRank, maxTopk, hidden, experts }: (typeof sizes)[keyof typeof sizes]) {
  return (
    fc
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
      // Rows of fp4 are whole vectors from 32 elements on.
      .map((shape) => ({
        ...shape,
        hidden: shape.format === 'nvfp4' ? Math.ceil(shape.hidden / 32) * 32 : shape.hidden,
      }))
      .chain((shape) =>
        fc.record({
          shape: fc.constant(shape),
          numTokens: fc.array(fc.nat(maxTokensPerRank), { minLength: shape.numRanks, maxLength: shape.numRanks }),
        }),
      )
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

/** Reads scales as they are stored; gives those of a row. */
async function scalesOf(scales: Tensor): Promise<(expert: number, row: number) => number[]> {
  const [experts, rows, columns] = scales.shape as [number, number, number]
  const { memory, dtype, byteOffset } = scales
  const stored = await new Tensor({ memory, dtype, byteOffset, shape: [experts, columns, rows] }).read()
  const [ofExpert, ofRow, ofColumn] = scales.strides as [number, number, number]
  return (expert, row) =>
    Array.from({ length: columns }, (_, column) => Number(stored[expert * ofExpert + row * ofRow + column * ofColumn]))
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
            ...{ numExperts, ...options, ...formats[c.format]!.options },
            ...(c.format === 'nvfp4' && { xGlobalScale: Tensor.from([1000], [1], 'f32') }),
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
      { numRuns },
    )
  })
})
