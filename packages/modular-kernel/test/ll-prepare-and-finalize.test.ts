import { Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { InputQuant, LlPrepareAndFinalizeOptions } from '../src/index.js'
import { Layer, type LayerShape, rounded } from './layer.js'
import { expectedOf, onLlRanks, outputRows } from './ll-layer.js'
import { throughFp8 } from './through-fp8.js'

const base: LayerShape = { numTokens: [5, 0, 3], hidden: 48, intermediate: 6, numExperts: 5, topk: 3, seed: 11 }
const castInDispatch = { quant: { kind: 'fp8-block' } } as const

/** Ways to send rows, and what experts then see of them. */
const formats: Readonly<Record<string, LlPrepareAndFinalizeOptions>> = {
  bf16: {},
  fp8: castInDispatch,
  'fp8, scales f32': { ...castInDispatch, scaleFormat: 'f32' },
  'fp8, powers of two': { ...castInDispatch, scaleFormat: 'ue8m0' },
  'fp8, packed': { ...castInDispatch, scaleFormat: 'ue8m0-packed' },
}

async function seenRows(rows: readonly Float32Array[], options: LlPrepareAndFinalizeOptions): Promise<Float32Array[]> {
  const { quant, scaleFormat = 'f32' } = options
  return quant === undefined ? [...rows] : throughFp8(rows, quant, { numerics: 'deepep', scaleFormat })
}

describe('a layer equals the dense loop bit for bit', () => {
  const cases = fc.record({
    shape: fc.integer({ min: 1, max: 5 }).chain((numRanks) =>
      fc.record({
        numTokens: fc.array(fc.nat(6), { minLength: numRanks, maxLength: numRanks }),
        hidden: fc.constantFrom(16, 48, 144, 272),
        intermediate: fc.integer({ min: 1, max: 6 }),
        // Also fewer than ranks: some own none.
        numExperts: fc.integer({ min: 1, max: 9 }),
        topk: fc.integer({ min: 1, max: 5 }),
        seed: fc.nat(1e6),
      }),
    ),
    routing: fc.constantFrom('random', 'one expert', 'nowhere', 'twice the same'),
    idDtype: fc.constantFrom('i32' as const, 'i64' as const),
    format: fc.constantFrom(...Object.keys(formats)),
    // One row for each expert has its weights applied at home, in any case.
    sums: fc.constantFrom('at the ranks', 'at home', 'at home, protocol expert'),
  })

  test('for random shapes, with zero-token ranks, duplicates, ids of both widths and all forms of rows', async () => {
    await fc.assert(
      fc.asyncProperty(cases, async ({ shape, routing, idDtype, format, sums }) => {
        let calls = 0
        const choose = {
          random: undefined,
          'one expert': () => shape.numExperts - 1,
          nowhere: () => -1,
          'twice the same': () => Math.floor(calls++ / 2) % shape.numExperts,
        }[routing]
        const layer = new Layer({ ...shape, ...(choose && { choose }) })
        const weightsAtDispatch = sums === 'at the ranks'
        const protocol = sums === 'at home, protocol expert' ? 'expert' : 'rank'
        const options = { ...formats[format]!, protocol, ...(protocol === 'rank' && { weightsAtDispatch }) } as const
        const run = async ({ rank, stream, kernel, buffer }: Parameters<Parameters<typeof onLlRanks>[1]>[0]) => {
          const rows = await seenRows(layer.inputs[rank]!.x, options)
          const expected = expectedOf(layer, rank, { rows, weightsAtDispatch })
          // Again on the same slot: nothing of the first call may be left.
          for (let repeat = 0; repeat < 2; repeat++) {
            const output = await kernel.apply({ ...layer.argumentsOf(rank, idDtype), stream })
            await stream.synchronize()
            expect([output.dtype, output.shape]).toEqual(['bf16', [shape.numTokens[rank], shape.hidden]])
            expect(outputRows(output)).toEqual(expected)
          }
          expect(buffer.freeSlots).toBe(2)
        }
        await onLlRanks(layer, run, options)
      }),
      { numRuns: 60 },
    )
  })

  test('when only one rank has tokens, none has, and all of all tokens go to one expert', async () => {
    for (const numTokens of [
      [0, 4, 0],
      [0, 0, 0],
      [6, 1, 0, 2, 5],
    ]) {
      const layer = new Layer({ ...base, numTokens, choose: () => 0 })
      await onLlRanks(layer, async ({ rank, stream, kernel }) => {
        const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
        await stream.synchronize()
        expect(outputRows(output)).toEqual(expectedOf(layer, rank, {}))
      })
    }
  })

  test.each([true, false])('weights at the dispatch %s: they are applied there and nowhere else', async (at) => {
    const layer = new Layer(base)
    const sums = [true, false].map((weightsAtDispatch) => expectedOf(layer, 0, { weightsAtDispatch }))
    // The two round differently, or it could not be told which was done.
    expect(sums[0]).not.toEqual(sums[1])
    await onLlRanks(
      layer,
      async ({ rank, stream, kernel }) => {
        const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
        await stream.synchronize()
        expect(outputRows(output)).toEqual(expectedOf(layer, rank, { weightsAtDispatch: at }))
      },
      { weightsAtDispatch: at },
    )
  })
})

describe('rows that are quantised where they arrive', () => {
  const quants: readonly InputQuant[] = [
    { kind: 'fp8-block', groupSize: 16 },
    { kind: 'fp8-token' },
    { kind: 'fp8-tensor', scale: Tensor.from([1.9 / 448], [1], 'f32') },
  ]

  test.each(quants)('$kind: the bits of a quantisation before they were sent', async (quant) => {
    const layer = new Layer(base)
    const plain = layer.inputs.map((_, rank) => expectedOf(layer, rank, {}))
    await onLlRanks(
      layer,
      async ({ rank, stream, kernel, side }) => {
        expect([side.quantScheme, side.scaleFormat]).toEqual([quant.kind, 'f32'])
        const rows = await throughFp8(layer.inputs[rank]!.x, quant)
        const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
        await stream.synchronize()
        expect(outputRows(output)).toEqual(expectedOf(layer, rank, { rows }))
        if (output.numel > 0) expect(outputRows(output)).not.toEqual(plain[rank])
      },
      { quant },
    )
  })
})

describe('router weights on the input', () => {
  const single = new Layer({ ...base, topk: 1 })

  test.each([
    [true, {}],
    [false, {}],
    [true, castInDispatch],
  ] as const)('weights at the dispatch %s, %j: once, before the cast, and never again', async (at, format) => {
    const options = { ...format, weightsAtDispatch: at }
    await onLlRanks(
      single,
      async ({ rank, stream, kernel }) => {
        const { x, topkIdx, topkWeights } = single.inputs[rank]!
        const weighted = x.map((row, token) => {
          const weight = rounded('bf16', topkWeights[token]!)[0]!
          return rounded(
            'bf16',
            row.map((value) => value * weight),
          )
        })
        const seen = await seenRows(weighted, options)
        const expected = seen.map((row, token) => {
          const id = topkIdx[token]![0]!
          return Array.from(id < 0 ? new Float32Array(row.length) : single.expertRow(id, row), (value) => value + 0)
        })
        const output = await kernel.apply({ ...single.argumentsOf(rank), applyRouterWeightOnInput: true, stream })
        await stream.synchronize()
        expect(outputRows(output)).toEqual(expected)
      },
      options,
    )
  })
})

test('prepare delivers rows by expert with their counts, and leaves ids and weights as they are', async () => {
  const layer = new Layer({ ...base, hidden: 272 })
  const options = { ...castInDispatch, scaleFormat: 'ue8m0-packed' } as const
  await onLlRanks(
    layer,
    async ({ rank, stream, side, buffer }) => {
      const args = layer.argumentsOf(rank, 'i64')
      const prepared = await side.prepare({ ...args, stream })
      await stream.synchronize()
      const first = [0, 2, 4][rank]!
      const owned = [2, 2, 1][rank]!
      expect(side.numLocalExperts(5)).toBe(owned)
      const named = layer.inputs.flatMap(({ topkIdx }) => topkIdx.map((slots) => new Set(slots)))
      const counts = Array.from({ length: owned }, (_, local) => named.filter((ids) => ids.has(first + local)).length)
      expect(Array.from(prepared.tokens!.numTokens.toNumbers())).toEqual(counts)
      expect(prepared.tokens!.numTokensHost).toBeUndefined()
      expect([prepared.hiddenStates.dtype, prepared.hiddenStates.shape]).toEqual(['fp8e4m3', [owned, 15, 272]])
      // 3 groups, the last one short, in one word a row.
      expect([prepared.scales!.dtype, prepared.scales!.shape, prepared.groupSize]).toEqual(['i32', [owned, 15, 1], 128])
      expect(prepared.topkIdx).toBe(args.topkIdx)
      expect(prepared.topkWeights).toBe(args.topkWeights)
      side.release()
      side.release(17)
      expect(buffer.freeSlots).toBe(2)
      await stream.synchronize()
    },
    options,
  )
})

test('rows of a micro-batch arrive in the same memory again, until shapes change', async () => {
  const narrow = { ...base, hidden: 16, numExperts: 2 }
  const layer = new Layer(base)
  await onLlRanks(
    layer,
    async ({ rank, stream, side }) => {
      const memoryOf = async (of: Layer, microBatch: number): Promise<readonly unknown[]> => {
        const { hiddenStates, scales, tokens } = await side.prepare({ ...of.argumentsOf(rank), microBatch, stream })
        side.release(microBatch)
        return [hiddenStates.memory, scales!.memory, tokens!.numTokens.memory]
      }
      const [first, other] = [await memoryOf(layer, 0), await memoryOf(layer, 1)]
      for (const [i, memory] of (await memoryOf(layer, 0)).entries()) expect(memory).toBe(first[i])
      for (const [i, memory] of (await memoryOf(layer, 1)).entries()) expect(memory).toBe(other[i])
      for (const [i, memory] of other.entries()) expect(memory).not.toBe(first[i])
      for (const changed of [{ ...base, hidden: 16 }, narrow, base]) await memoryOf(new Layer(changed), 0)
      for (const [i, memory] of (await memoryOf(layer, 0)).entries()) expect(memory).not.toBe(first[i])
      await stream.synchronize()
    },
    castInDispatch,
  )
})

test('layers of other shapes take turns on one micro-batch', async () => {
  const layers = [base, { ...base, hidden: 16, seed: 12 }, { ...base, numExperts: 2, seed: 13 }].map(
    (shape) => new Layer(shape),
  )
  await onLlRanks(layers[0]!, async ({ rank, stream, kernel }) => {
    for (const layer of [...layers, ...layers, layers[2]!]) {
      const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
      await stream.synchronize()
      expect(outputRows(output)).toEqual(expectedOf(layer, rank, {}))
    }
  })
})
