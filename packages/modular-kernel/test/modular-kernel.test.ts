import { getDevice, Tensor } from '@moe-ep/core'
import { type Experts, GroupedExperts, referenceEngines } from '@moe-ep/experts'
import fc from 'fast-check'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from 'vitest'
import { failureOf, rowsOnHost } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, LocalPrepareAndFinalize, ModularKernel } from '../src/index.js'
import { base, expectLayer, expertsThat, onHtRanks } from './ht-layer.js'
import { Layer, type LayerShape, rounded } from './layer.js'

/** The row times a power of two, which is exact, so that 50 layers neither fade nor overflow; ones for a row of zeros. */
function toUnitSize(row: readonly number[]): Float32Array {
  const largest = Math.max(...row.map(Math.abs))
  if (largest === 0) return new Float32Array(row.length).fill(1)
  const scale = 2 ** -Math.floor(Math.log2(largest))
  return rounded(
    'bf16',
    row.map((value) => value * scale),
  )
}

describe('a layer equals the dense loop bit for bit', () => {
  const shapes = fc
    .record({
      numTokens: fc.array(fc.nat(6), { minLength: 1, maxLength: 3 }),
      hidden: fc.constantFrom(8, 24, 40),
      intermediate: fc.integer({ min: 1, max: 9 }),
      numExperts: fc.integer({ min: 1, max: 7 }),
      topk: fc.integer({ min: 1, max: 5 }),
      seed: fc.nat(1e6),
      weightDtype: fc.constantFrom('f32' as const, 'bf16' as const, 'f16' as const),
    })
    .map((shape): LayerShape => shape)
  const routings = fc.constantFrom('random', 'one expert', 'nowhere', 'twice the same')

  test('for random shapes, with zero-token ranks, duplicates and ids of both widths', async () => {
    await fc.assert(
      fc.asyncProperty(
        shapes,
        routings,
        fc.constantFrom('i32' as const, 'i64' as const),
        async (shape, routing, idDtype) => {
          let calls = 0
          const choose = {
            random: undefined,
            'one expert': () => shape.numExperts - 1,
            nowhere: () => -1,
            // Neighbouring slots name the same expert.
            'twice the same': () => Math.floor(calls++ / 2) % shape.numExperts,
          }[routing]
          const layer = new Layer({ ...shape, ...(choose && { choose }) })
          await onHtRanks(layer, async ({ rank, stream, kernel }) => {
            const output = await kernel.apply({ ...layer.argumentsOf(rank, idDtype), stream })
            await stream.synchronize()
            expect([output.dtype, output.shape]).toEqual(['bf16', [shape.numTokens[rank], shape.hidden]])
            expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
          })
        },
      ),
      { numRuns: 40 },
    )
  })

  test('when only one rank has tokens, and when all tokens go to one rank', async () => {
    for (const numTokens of [
      [0, 4, 0],
      [0, 0, 0],
      [6, 0, 1],
    ]) {
      const layer = new Layer({ ...base, numTokens, choose: () => 0 })
      await onHtRanks(layer, (rank) => expectLayer(layer, rank))
    }
  })

  test('on the default stream', async () => {
    const layer = new Layer({ ...base, numTokens: [4] })
    await onHtRanks(layer, async ({ kernel }) => {
      const output = await kernel.apply(layer.argumentsOf(0))
      await output.device.defaultStream.synchronize()
      expect(rowsOnHost(output)).toEqual(layer.expectedOf(0))
    })
  })

  test('over 50 layers, each on the output of the one before, with garbage collected in between', async () => {
    setFlagsFromString('--expose-gc')
    const collectGarbage = runInNewContext('gc') as () => void
    const layers = Array.from(
      { length: 50 },
      (_, i) => new Layer({ ...base, numTokens: [3, 0, 2], seed: 100 + (i % 5) }),
    )
    await onHtRanks(layers[0]!, async ({ rank, stream, kernel, buffer }) => {
      let { hiddenStates } = layers[0]!.argumentsOf(rank)
      let expected: readonly Float32Array[] = layers[0]!.inputs[rank]!.x
      for (const [i, layer] of layers.entries()) {
        const { hiddenStates: _, ...args } = layer.argumentsOf(rank)
        const output = await kernel.apply({ ...args, hiddenStates, stream })
        if (i % 5 === rank) collectGarbage()
        await stream.synchronize()
        const rows = rowsOnHost(output)
        expect(rows).toEqual(layer.expectedOf(rank, expected))
        expected = rows.map(toUnitSize)
        hiddenStates = Tensor.from(
          expected.flatMap((row) => Array.from(row)),
          output.shape,
          'bf16',
        )
      }
      expect(buffer.freeSlots).toBe(2)
    })
  })
})

describe('two micro-batches', () => {
  const halves = [new Layer(base), new Layer({ ...base, numTokens: [5, 0], seed: 2 })] as const

  test('take turns on one stream: both are prepared before the first is finalized', async () => {
    await onHtRanks(halves[0], async ({ rank, stream, kernel }) => {
      const { prepareAndFinalize, experts } = kernel
      const args = halves.map((layer) => layer.argumentsOf(rank))
      const prepared = [
        await prepareAndFinalize.prepare({ ...args[0]!, microBatch: 0, stream }),
        await prepareAndFinalize.prepare({ ...args[1]!, microBatch: 1, stream }),
      ]
      const outputs = args.map(({ hiddenStates }) => Tensor.zeros(hiddenStates.shape, 'bf16'))
      for (const microBatch of [1, 0]) {
        const { hiddenStates, topkIdx, topkWeights } = prepared[microBatch]!
        const expertOutput = Tensor.zeros(hiddenStates.shape, 'bf16')
        if (hiddenStates.shape[0]! > 0) {
          await experts.apply({
            output: expertOutput,
            hiddenStates,
            weights: args[microBatch]!.weights,
            topkIdx,
            topkWeights,
            stream,
          })
        }
        const output = outputs[microBatch]!
        await prepareAndFinalize.finalize({
          ...{
            output,
            expertOutput,
            topkIdx,
            topkWeights,
            weightAndReduce: experts.weightAndReduce,
            microBatch,
            stream,
          },
        })
      }
      await stream.synchronize()
      for (const [half, output] of outputs.entries()) expect(rowsOnHost(output)).toEqual(halves[half]!.expectedOf(rank))
    })
  })

  test('a third finds no slot, on every rank, and the two go on', async () => {
    const layer = halves[0]
    await onHtRanks(layer, async (rank) => {
      const { prepareAndFinalize } = rank.kernel
      const args = { ...layer.argumentsOf(rank.rank), stream: rank.stream }
      for (const microBatch of [0, 1]) await prepareAndFinalize.prepare({ ...args, microBatch })
      expect((await failureOf(rank.kernel.apply({ ...args, microBatch: 2 }))).code).toBe('ERR_MOE_EP_NO_FREE_SLOT')
      const again = await failureOf(prepareAndFinalize.prepare({ ...args, microBatch: 1 }))
      expect([again.code, again.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', 'microBatch'])
      expect(rank.buffer.freeSlots).toBe(0)
      for (const microBatch of [0, 1]) prepareAndFinalize.release(microBatch)
      await rank.group.barrier()
      await expectLayer(layer, rank)
    })
  })
})

describe('parts of a kernel', () => {
  test('whose formats differ do not make one', async () => {
    const layer = new Layer({ ...base, numTokens: [1] })
    await onHtRanks(layer, async ({ buffer }) => {
      const prepareAndFinalize = new HtPrepareAndFinalize(buffer)
      expect(prepareAndFinalize).toMatchObject({ maxNumTokensPerRank: 1, numDispatchers: 1, outputIsReduced: true })
      const batched = expertsThat(async () => {}, { activationFormat: 'batchedExperts' })
      const make = (): ModularKernel => new ModularKernel(prepareAndFinalize, batched)
      expect(make).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'experts' } }))
    })
  })

  test('the prepare side hears of the experts once', async () => {
    const heard: Experts[] = []
    const experts = expertsThat(async () => {})
    const prepareAndFinalize = { activationFormat: 'standard', postInitSetup: (own: Experts) => heard.push(own) }
    const kernel = new ModularKernel(prepareAndFinalize as unknown as HtPrepareAndFinalize, experts)
    expect(heard).toEqual([kernel.experts])
  })

  test('the experts are told which activation the layer was made for', async () => {
    const told: unknown[] = []
    const own = new Layer({ ...base, numTokens: [2] })
    for (const activation of [undefined, 'silu', 'gelu'] as const) {
      const experts = expertsThat(async (args) => void told.push(args.activation), { activations: ['silu', 'gelu'] })
      const config = activation === undefined ? {} : { config: { activation } }
      const kernel = new ModularKernel(new LocalPrepareAndFinalize(), experts, config)
      await kernel.apply(own.argumentsOf(0))
    }
    expect(told).toEqual([undefined, 'silu', 'gelu'])
    const grouped = new GroupedExperts(referenceEngines())
    const stream = getDevice('cpu').defaultStream
    const args = { ...own.argumentsOf(0), output: Tensor.zeros([2, 16], 'bf16'), stream, activation: 'gelu' } as const
    expect((await failureOf(grouped.apply(args))).details['argument']).toBe('activation')
  })
})
