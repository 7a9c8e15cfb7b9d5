import { getDevice, MoeEpError, Tensor } from '@moe-ep/core'
import { type Experts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import fc from 'fast-check'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, test } from 'vitest'
import { failureOf, type Rank, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import {
  HtPrepareAndFinalize,
  LocalPrepareAndFinalize,
  ModularKernel,
  type ModularKernelArguments,
} from '../src/index.js'
import { Layer, type LayerShape, rounded, sizesFor } from './layer.js'

/** A deadline that nobody may have to wait for. */
const never = 3_600_000
const base: LayerShape = { numTokens: [5, 3], hidden: 16, intermediate: 6, numExperts: 5, topk: 3, seed: 1 }

/** Runs `body` for all ranks at once, each with a kernel around its buffer. */
async function onRanks(
  layer: Layer,
  body: (rank: Rank & { readonly kernel: ModularKernel }) => Promise<void>,
  options: {
    readonly experts?: (rank: number) => Experts
    readonly timeoutMs?: number
    readonly maxInFlight?: number
  } = {},
): Promise<void> {
  const { experts = () => new GroupedExperts(referenceEngines()), ...bufferOptions } = options
  await withWorld(layer.numRanks, { ...sizesFor(layer.shape), ...bufferOptions }, async (ranks) => {
    await Promise.all(
      ranks.map(async (rank) => {
        const own = experts(rank.rank)
        await body({ ...rank, kernel: new ModularKernel(new HtPrepareAndFinalize(rank.buffer), own) })
        await own.close()
      }),
    )
  })
}

/** Experts that do what `apply` does, in the layer's own format. */
function expertsThat(apply: Experts['apply'], wrong: Partial<Experts> = {}): Experts {
  return { activationFormat: 'standard', weightAndReduce: noWeightAndReduce, apply, close: async () => {}, ...wrong }
}

/** One layer, and the expectation that it is right bit for bit: also the proof that a buffer still works. */
async function expectLayer(
  layer: Layer,
  { rank, stream, kernel, buffer }: Rank & { readonly kernel: ModularKernel },
): Promise<void> {
  const output = await kernel.apply({ ...layer.argumentsOf(rank), stream })
  await stream.synchronize()
  expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
  expect(buffer.freeSlots).toBe(buffer.sizes.maxInFlight)
}

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
          await onRanks(layer, async ({ rank, stream, kernel }) => {
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
      await onRanks(layer, (rank) => expectLayer(layer, rank))
    }
  })

  test('on the default stream', async () => {
    const layer = new Layer({ ...base, numTokens: [4] })
    await onRanks(layer, async ({ kernel }) => {
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
    await onRanks(layers[0]!, async ({ rank, stream, kernel, buffer }) => {
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

  test('are in flight at a time on streams of their own', async () => {
    await onRanks(halves[0], async ({ rank, kernel, buffer }) => {
      const streams = halves.map(() => buffer.device.createStream({ threads: 1 }))
      for (let round = 0; round < 10; round++) {
        // Delays differ by rank and half, so that they finish in every order.
        for (const [half, stream] of streams.entries()) stream.delay(((round + rank) % 3) * (half + 1) * 700)
        const running = halves.map((layer, microBatch) =>
          kernel.apply({ ...layer.argumentsOf(rank), microBatch, stream: streams[microBatch]! }),
        )
        expect(buffer.freeSlots).toBe(0)
        const outputs = await Promise.all(running)
        await Promise.all(streams.map((stream) => stream.synchronize()))
        for (const [half, output] of outputs.entries())
          expect(rowsOnHost(output)).toEqual(halves[half]!.expectedOf(rank))
        expect(buffer.freeSlots).toBe(2)
      }
      await Promise.all(streams.map((stream) => stream.close()))
    })
  })

  test('take turns on one stream: both are prepared before the first is finalized', async () => {
    await onRanks(halves[0], async ({ rank, stream, kernel }) => {
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
    await onRanks(layer, async (rank) => {
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

describe('failures', () => {
  const layer = new Layer(base)
  const healthy = new GroupedExperts(referenceEngines())
  const noSuchGemm = new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'no such GEMM')

  test('of the experts on every rank free the slot, and the next layer is right', async () => {
    let failing = true
    const experts = expertsThat(async (args) => {
      if (failing) throw new Error('out of luck')
      await healthy.apply(args)
    })
    const body = async (rank: Rank & { readonly kernel: ModularKernel }): Promise<void> => {
      for (let i = 0; i < 5; i++) {
        const error = await failureOf(rank.kernel.apply({ ...layer.argumentsOf(rank.rank), stream: rank.stream }))
        expect([error.code, error.message]).toEqual(['ERR_MOE_EP_INTERNAL', 'out of luck'])
        expect(rank.buffer.freeSlots).toBe(2)
      }
      await rank.group.barrier()
      failing = false
      await expectLayer(layer, rank)
    }
    await onRanks(layer, body, { experts: () => experts })
  })

  test('of the strategy free the slot, too, and keep their own code', async () => {
    const weightAndReduce = {
      ...noWeightAndReduce,
      apply() {
        throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'not today')
      },
    }
    const experts = expertsThat((args) => healthy.apply(args), { weightAndReduce })
    const body = async ({ rank, stream, kernel, buffer }: Rank & { readonly kernel: ModularKernel }): Promise<void> => {
      const error = await failureOf(kernel.apply({ ...layer.argumentsOf(rank), stream }))
      expect(error.code).toBe('ERR_MOE_EP_UNSUPPORTED')
      expect(buffer.freeSlots).toBe(2)
    }
    await onRanks(layer, body, { experts: () => experts })
  })

  test.each([
    ['experts', (): Partial<Experts> => ({ apply: () => Promise.reject(noSuchGemm) })],
    [
      'strategy',
      (): Partial<Experts> => ({
        weightAndReduce: {
          ...noWeightAndReduce,
          apply() {
            throw noSuchGemm
          },
        },
      }),
    ],
  ])('of the %s of one rank are heard on all at once, and the next layer is right', async (_, broken) => {
    const wrong = (rank: number): Experts => expertsThat((args) => healthy.apply(args), rank === 1 ? broken() : {})
    const body = async (rank: Rank & { readonly kernel: ModularKernel }): Promise<void> => {
      const { stream, kernel, buffer } = rank
      const running = kernel.apply({ ...layer.argumentsOf(rank.rank), stream }).then(() => stream.synchronize())
      const error = await failureOf(running)
      const told = 'intranode combine: refused by rank 1: '
      expect([error.code, error.message]).toEqual([noSuchGemm.code, `${rank.rank === 1 ? '' : told}no such GEMM`])
      await expectLayer(layer, { ...rank, kernel: new ModularKernel(new HtPrepareAndFinalize(buffer), healthy) })
    }
    await onRanks(layer, body, { experts: wrong, timeoutMs: never })
  })

  test('by an abort signal free the slot', async () => {
    await onRanks(layer, async (rank) => {
      const signal = AbortSignal.abort(new Error('enough'))
      const error = await failureOf(rank.kernel.apply({ ...layer.argumentsOf(rank.rank), stream: rank.stream, signal }))
      expect(error.code).toBe('ERR_MOE_EP_ABORTED')
      expect(rank.buffer.freeSlots).toBe(2)
      await rank.group.barrier()
      await expectLayer(layer, rank)
    })
  })
})

describe('arguments', () => {
  test('parts whose formats differ do not make a kernel', async () => {
    const layer = new Layer({ ...base, numTokens: [1] })
    await onRanks(layer, async ({ buffer }) => {
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

  const layer = new Layer(base)
  const zeroWeights = (experts: number, hidden: number): ModularKernelArguments['weights'] => ({
    w13: Tensor.zeros([experts, 12, hidden], 'f32'),
    w2: Tensor.zeros([experts, hidden, 6], 'f32'),
  })
  const cases: [string, string, (args: ModularKernelArguments) => Partial<ModularKernelArguments>][] = [
    [
      'rows that are not bf16',
      'hiddenStates',
      ({ hiddenStates: { shape } }) => ({ hiddenStates: Tensor.zeros(shape, 'f32') }),
    ],
    ['a single row of no batch', 'hiddenStates', () => ({ hiddenStates: Tensor.zeros([16], 'bf16') })],
    [
      'more tokens than the buffer takes',
      'hiddenStates',
      () => ({
        hiddenStates: Tensor.zeros([6, 16], 'bf16'),
        topkIdx: Tensor.zeros([6, 3], 'i32'),
        topkWeights: Tensor.zeros([6, 3], 'f32'),
      }),
    ],
    [
      'rows wider than the buffer takes',
      'x',
      ({ hiddenStates: { shape }, weights }) => ({
        hiddenStates: Tensor.zeros([shape[0]!, 32], 'bf16'),
        weights: zeroWeights(weights.w13.shape[0]!, 32),
      }),
    ],
    [
      'rows of no multiple of 16 bytes',
      'x',
      ({ hiddenStates: { shape }, weights }) => ({
        hiddenStates: Tensor.zeros([shape[0]!, 12], 'bf16'),
        weights: zeroWeights(weights.w13.shape[0]!, 12),
      }),
    ],
    ['ids of floats', 'topkIdx', ({ topkIdx: { shape } }) => ({ topkIdx: Tensor.zeros(shape, 'f32') })],
    ['ids of other rows', 'topkIdx', () => ({ topkIdx: Tensor.zeros([1, 3], 'i32') })],
    [
      'weights that are not f32',
      'topkWeights',
      ({ topkIdx: { shape } }) => ({ topkWeights: Tensor.zeros(shape, 'bf16') }),
    ],
    [
      'weights of other slots',
      'topkWeights',
      ({ topkIdx: { shape } }) => ({ topkWeights: Tensor.zeros([shape[0]!, 2], 'f32') }),
    ],
    ['no experts', 'numExperts', () => ({ numExperts: 0 })],
    ['more experts than the buffer takes', 'numExperts', () => ({ numExperts: 6, weights: zeroWeights(3, 16) })],
    ['weights of other rows', 'w13', ({ weights: { w13 } }) => ({ weights: zeroWeights(w13.shape[0]!, 8) })],
    ['an expert too many', 'w13', ({ weights: { w13 } }) => ({ weights: zeroWeights(w13.shape[0]! + 1, 16) })],
    [
      'second weights of other experts',
      'w2',
      ({ weights: { w13 } }) => ({ weights: { w13, w2: zeroWeights(1, 16).w2 } }),
    ],
    ['no weights', 'w13', () => ({ weights: undefined as unknown as ModularKernelArguments['weights'] })],
    ['a plain array for rows', 'hiddenStates', () => ({ hiddenStates: [1, 2] as unknown as Tensor })],
  ]

  test.each(cases)('%s are refused on every rank before anything is sent', async (_, argument, wrong) => {
    await onRanks(layer, async (rank) => {
      const args = layer.argumentsOf(rank.rank)
      const error = await failureOf(rank.kernel.apply({ ...args, ...wrong(args), stream: rank.stream }))
      expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', argument])
      await expectLayer(layer, rank)
    })
  })

  test.each(cases)('%s on one rank: all refuse, and the next layer is right', async (_, argument, wrong) => {
    const body = async (rank: Rank & { readonly kernel: ModularKernel }): Promise<void> => {
      const { stream, kernel } = rank
      const args = layer.argumentsOf(rank.rank)
      const error = await failureOf(kernel.apply({ ...args, ...(rank.rank === 0 && wrong(args)), stream }))
      const told = 'intranode dispatch: refused by rank 0: '
      expect(error.code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(error.message.startsWith(`${rank.rank === 0 ? '' : told}${argument}: expected`)).toBe(true)
      await expectLayer(layer, rank)
    }
    await onRanks(layer, body, { timeoutMs: never })
  })

  test('a micro-batch that one rank has begun already: all refuse', async () => {
    const body = async (rank: Rank & { readonly kernel: ModularKernel }): Promise<void> => {
      const { prepareAndFinalize } = rank.kernel
      const args = { ...layer.argumentsOf(rank.rank), stream: rank.stream }
      await prepareAndFinalize.prepare(args)
      const error = await failureOf(prepareAndFinalize.prepare({ ...args, microBatch: rank.rank === 1 ? 0 : 1 }))
      expect([error.code, error.message]).toEqual(['ERR_MOE_EP_ARGUMENT', expect.stringContaining('microBatch')])
      prepareAndFinalize.release()
      await expectLayer(layer, rank)
    }
    await onRanks(layer, body, { timeoutMs: never })
  })

  test('ids out of range fail the layer on the rank that has them and free its slot', async () => {
    const wild = new Layer({ ...base, numTokens: [2], choose: () => 99 })
    await onRanks(wild, async ({ kernel, stream, buffer }) => {
      const { hiddenStates, topkIdx, topkWeights, weights } = wild.argumentsOf(0)
      const error = await failureOf(
        kernel.apply({ hiddenStates, topkIdx, topkWeights, weights, numExperts: 5, stream }),
      )
      expect(error.code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(buffer.freeSlots).toBe(2)
    })
  })
})
