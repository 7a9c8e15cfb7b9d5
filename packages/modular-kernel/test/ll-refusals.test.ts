import { type ErrorCode, MoeEpError, Tensor } from '@moe-ep/core'
import { BatchedExperts, type Experts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { failureOf } from '../../low-latency/test/world.js'
import { LlPrepareAndFinalize, ModularKernel, type ModularKernelArguments } from '../src/index.js'
import { never } from './ht-layer.js'
import { Layer } from './layer.js'
import { batchedExpertsFor, expectedOf, type LlRank, onLlRanks, outputRows } from './ll-layer.js'

const layer = new Layer({ numTokens: [4, 2], hidden: 16, intermediate: 4, numExperts: 5, topk: 2, seed: 5 })
const alone = new Layer({ ...layer.shape, numTokens: [4] })
const three = new Layer({ ...layer.shape, numTokens: [4, 2, 3] })
const castInDispatch = { quant: { kind: 'fp8-block' } } as const

/** One layer that is right: the proof that the buffer works on. */
async function expectLayer(
  of: Layer,
  { rank, stream, kernel, buffer }: LlRank,
  options: Parameters<typeof expectedOf>[2] = {},
): Promise<void> {
  const output = await kernel.apply({ ...of.argumentsOf(rank), stream })
  await stream.synchronize()
  expect(outputRows(output)).toEqual(expectedOf(of, rank, options))
  expect(buffer.freeSlots).toBe(2)
}

describe('what cannot work is refused', () => {
  test('when it is made', async () => {
    await onLlRanks(alone, async ({ buffer }) => {
      for (const [options, argument] of [
        [{ quant: { kind: 'fp4' } }, 'quant'],
        [{ scaleFormat: 'ue8m0' }, 'scaleFormat'],
        [{ quant: { kind: 'fp8-block', groupSize: 64 }, scaleFormat: 'f32' }, 'scaleFormat'],
        [{ ...castInDispatch, scaleFormat: 'e8m0' }, 'scaleFormat'],
      ] as const) {
        expect(() => new LlPrepareAndFinalize(buffer, options as never)).toThrow(
          expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }),
        )
      }
    })
  })

  test('weights at the dispatch of a buffer that sends a row for each expert', async () => {
    await onLlRanks(
      alone,
      async ({ buffer }) => {
        expect(() => new LlPrepareAndFinalize(buffer, { weightsAtDispatch: true })).toThrow(
          expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'weightsAtDispatch' } }),
        )
      },
      { protocol: 'expert' },
    )
  })

  test.each<[string, string, () => Experts]>([
    ['rows that are not by expert', 'batchedExperts', () => new GroupedExperts(referenceEngines())],
    [
      'too few rows for all ranks',
      '4 rows of an expert',
      () => new BatchedExperts(referenceEngines(), { maxNumTokens: 3, numDispatchers: 1 }),
    ],
    [
      'experts that weigh',
      'left to delegate',
      () => Object.assign(batchedExpertsFor(alone), { weightAndReduce: noWeightAndReduce }),
    ],
    [
      'experts that quantise by themselves',
      'prepare has quantised',
      () => Object.assign(batchedExpertsFor(alone), { expectsUnquantizedInputs: true }),
    ],
    [
      'experts that cannot read such scales',
      'ue8m0-packed',
      () => Object.assign(batchedExpertsFor(alone), { scaleFormats: ['f32'] }),
    ],
  ])('%s, when a kernel is made', async (_, words, experts) => {
    await onLlRanks(alone, async ({ buffer }) => {
      const side = new LlPrepareAndFinalize(buffer, { ...castInDispatch, scaleFormat: 'ue8m0-packed' })
      expect(() => new ModularKernel(side, experts())).toThrow(
        expect.objectContaining({
          ...{ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'experts' } },
          message: expect.stringContaining(words),
        }),
      )
    })
  })

  const wide = (hidden: number): Partial<ModularKernelArguments> => ({
    hiddenStates: Tensor.zeros([4, hidden], 'bf16'),
    weights: { w13: Tensor.zeros([5, 8, hidden], 'f32'), w2: Tensor.zeros([5, hidden, 4], 'f32') },
  })
  const tooMany = {
    ...{ hiddenStates: Tensor.zeros([5, 16], 'bf16'), topkIdx: Tensor.zeros([5, 2], 'i32') },
    topkWeights: Tensor.zeros([5, 2], 'f32'),
  }
  test.each<[string, string, Partial<ModularKernelArguments>]>([
    ['rows that are not bf16', 'hiddenStates', { hiddenStates: Tensor.zeros([4, 16], 'f32') }],
    ['more tokens than the buffer takes', 'hiddenStates', tooMany],
    ['rows wider than the buffer takes', 'hidden', wide(32)],
    ['rows of no multiple of 16 where they are cast', 'hidden', wide(8)],
    ['top-2 with weights on the input', 'applyRouterWeightOnInput', { applyRouterWeightOnInput: true }],
    ['an expert too few', 'w13', { numExperts: 6 }],
  ])('%s, before anything is sent', async (_, argument, wrong) => {
    await onLlRanks(alone, async (world) => {
      const { stream, buffer } = world
      const kernel = new ModularKernel(new LlPrepareAndFinalize(buffer, castInDispatch), batchedExpertsFor(alone))
      const error = await failureOf(kernel.apply({ ...alone.argumentsOf(0), ...wrong, stream }))
      expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', argument])
      await expectLayer(alone, world)
    })
  })

  test('rows of 8 elements are fine as bf16', async () => {
    const narrow = new Layer({ ...layer.shape, hidden: 8 })
    await onLlRanks(narrow, (world) => expectLayer(narrow, world))
  })

  test('quantising cannot be left to experts', async () => {
    await onLlRanks(alone, async (world) => {
      const args = { ...alone.argumentsOf(0), deferInputQuant: true, stream: world.stream }
      const quantizing = new LlPrepareAndFinalize(world.buffer, castInDispatch)
      const error = await failureOf(quantizing.prepare(args))
      expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', 'deferInputQuant'])
      // Where nothing is quantised there is nothing to leave.
      expect((await world.side.prepare(args)).hiddenStates.dtype).toBe('bf16')
      world.side.release()
      await expectLayer(alone, world)
    })
  })
})

test('experts that want packed scales get them, and those that say nothing f32', async () => {
  await onLlRanks(alone, async ({ stream, buffer }) => {
    for (const [scaleFormats, wanted, scaleFormat] of [
      [['ue8m0-packed', 'f32'], undefined, 'ue8m0-packed'],
      [['ue8m0'], undefined, 'ue8m0'],
      [undefined, undefined, 'f32'],
      [['ue8m0-packed', 'f32'], 'f32', 'f32'],
    ] as const) {
      const side = new LlPrepareAndFinalize(buffer, { ...castInDispatch, ...(wanted && { scaleFormat: wanted }) })
      const kernel = new ModularKernel(side, Object.assign(batchedExpertsFor(alone), { scaleFormats }))
      expect(side.scaleFormat).toBe(scaleFormat)
      const { scales } = await side.prepare({ ...alone.argumentsOf(0), stream })
      expect(scales!.dtype).toBe(scaleFormat === 'ue8m0-packed' ? 'i32' : 'f32')
      side.release()
      await kernel.experts.close()
    }
    // Nothing is cast in the dispatch, so there are no scales to be asked for.
    const plain = new LlPrepareAndFinalize(buffer)
    plain.postInitSetup({ scaleFormats: ['ue8m0-packed'] })
    expect(plain.scaleFormat).toBe('f32')
  })
})

describe('failures', () => {
  test.each([5, 1])(
    'an id that is no expert on one rank, %i experts: all hear of it, and the next layer is right',
    async (numExperts) => {
      // Of one expert the second rank owns nothing, and has no experts to run.
      const of = new Layer({ ...layer.shape, numExperts })
      await onLlRanks(of, async (world) => {
        const { rank, stream, kernel, buffer } = world
        const args = of.argumentsOf(rank)
        const wild = rank === 0 ? { topkIdx: Tensor.from([0, 0, 0, 99, 0, 0, 0, 0], [4, 2], 'i32') } : {}
        const error = await failureOf(kernel.apply({ ...args, ...wild, stream }).then(() => stream.synchronize()))
        expect([error.code, error.message]).toEqual([
          'ERR_MOE_EP_ARGUMENT',
          expect.stringContaining(`rank 0, token 1: expert 99 of ${numExperts}`),
        ])
        expect(buffer.freeSlots).toBe(2)
        await expectLayer(of, world)
      })
    },
  )

  test('ranks that do not agree on when weights are applied', async () => {
    await onLlRanks(layer, async (world) => {
      const { rank, stream, buffer } = world
      const side = new LlPrepareAndFinalize(buffer, { weightsAtDispatch: rank === 0 })
      const kernel = new ModularKernel(side, batchedExpertsFor(layer))
      const error = await failureOf(
        kernel.apply({ ...layer.argumentsOf(rank), stream }).then(() => stream.synchronize()),
      )
      expect(error.code).toBe('ERR_MOE_EP_MISMATCH')
      await expectLayer(layer, world)
    })
  })

  test('of the experts on every rank free the slot, and the next layer is right', async () => {
    let failing = true
    const experts = (): Experts => {
      const own = batchedExpertsFor(layer)
      const apply = own.apply.bind(own)
      own.apply = (args) => (failing ? Promise.reject(new Error('out of luck')) : apply(args))
      return own
    }
    await onLlRanks(
      layer,
      async (world) => {
        const { rank, stream, kernel, buffer, group } = world
        for (let i = 0; i < 5; i++) {
          const error = await failureOf(kernel.apply({ ...layer.argumentsOf(rank), stream }))
          expect([error.code, error.message]).toEqual(['ERR_MOE_EP_INTERNAL', 'out of luck'])
          expect(buffer.freeSlots).toBe(2)
        }
        await group.barrier()
        failing = false
        await expectLayer(layer, world)
      },
      { experts },
    )
  })

  test('of a quantisation of what arrived free the micro-batch', async () => {
    const scale = Tensor.from([0.01], [1], 'f32')
    const quant = { kind: 'fp8-tensor', scale } as const
    await onLlRanks(alone, async (world) => {
      const side = new LlPrepareAndFinalize(world.buffer, { quant })
      scale.memory.close()
      for (let i = 0; i < 2; i++) {
        const error = await failureOf(side.prepare({ ...alone.argumentsOf(0), stream: world.stream }))
        expect(error.code).toBe('ERR_MOE_EP_RELEASED')
      }
      await expectLayer(alone, world)
    })
  })

  const float = { hiddenStates: Tensor.zeros([2, 16], 'f32') }
  const closed = (): Partial<ModularKernelArguments> => {
    const hiddenStates = Tensor.zeros([2, 16], 'bf16')
    hiddenStates.memory.close()
    return { hiddenStates }
  }
  test.each<[string, ErrorCode, () => Partial<ModularKernelArguments>, boolean]>([
    ['an expert too few', 'ERR_MOE_EP_ARGUMENT', () => ({ numExperts: 6 }), false],
    ['rows that are not bf16', 'ERR_MOE_EP_ARGUMENT', () => float, false],
    ['rows that are not bf16', 'ERR_MOE_EP_ARGUMENT', () => float, true],
    ['rows whose memory was closed', 'ERR_MOE_EP_RELEASED', closed, false],
    ['rows whose memory was closed', 'ERR_MOE_EP_RELEASED', closed, true],
  ])('of one rank before anything is sent are heard on all at once: %s, %s', async (_, code, wrong, overlapped) => {
    await onLlRanks(
      layer,
      async (world) => {
        const { rank, stream, kernel } = world
        const pass = overlapped ? { pass: () => Promise.resolve() } : {}
        for (const microBatch of [1, 0]) {
          const args = { ...layer.argumentsOf(rank), ...(rank === 1 && wrong()), ...pass, microBatch, stream }
          const error = await failureOf(kernel.apply(args).then(() => stream.synchronize()))
          expect(error.code).toBe(code)
          if (rank !== 1) expect(error.message).toBe(`low-latency dispatch: refused by rank 1: ${code}`)
          // Of what it told nothing is left to fail.
          await stream.synchronize()
        }
        await expectLayer(layer, world)
      },
      { timeoutMs: never },
    )
  })

  test('of a micro-batch whose slot another user of the buffer has are heard on this rank alone', async () => {
    await onLlRanks(
      layer,
      async (world) => {
        const { rank, stream, kernel, buffer } = world
        const { hiddenStates, topkIdx, numExperts } = layer.argumentsOf(rank)
        const { handle } = buffer.lowLatencyDispatch(hiddenStates, topkIdx, {
          numExperts,
          useFp8: false,
          stream,
          slot: 0,
        })
        const error = await failureOf(kernel.apply({ ...layer.argumentsOf(rank), stream }))
        expect(error.code).toBe('ERR_MOE_EP_NO_FREE_SLOT')
        buffer.release(handle)
        await expectLayer(layer, world)
      },
      { timeoutMs: never },
    )
  })

  const noSuchGemm = new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'no such GEMM')
  const broken = (part: string): Experts => {
    const own = batchedExpertsFor(layer)
    if (part === 'experts') own.apply = () => Promise.reject(noSuchGemm)
    // Then finalize refuses what it is given, before anything is sent.
    if (part === 'output') own.apply = async ({ output }) => output.memory.close()
    return own
  }
  test.each([
    ['experts', { weightsAtDispatch: true, overlapped: false }],
    ['experts', { weightsAtDispatch: true, overlapped: true }],
    ['experts', { weightsAtDispatch: false, overlapped: false, protocol: 'expert' }],
    ['output', { weightsAtDispatch: true, overlapped: false }],
    ['output', { weightsAtDispatch: true, overlapped: true }],
  ] as const)('of the %s of one rank are heard on all at once, and the next layer is right: %o', async (part, how) => {
    const { overlapped, ...options } = how
    await onLlRanks(
      layer,
      async (world) => {
        const { rank, stream, kernel, side } = world
        const pass = overlapped ? { pass: () => Promise.resolve() } : {}
        const running = kernel.apply({ ...layer.argumentsOf(rank), ...pass, stream })
        const error = await failureOf(running.then(() => stream.synchronize()))
        const code = part === 'experts' ? noSuchGemm.code : 'ERR_MOE_EP_RELEASED'
        expect(error.code).toBe(code)
        if (rank !== 1) expect(error.message).toBe(`low-latency combine: refused by rank 1: ${code}`)
        const healthy = new ModularKernel(side, batchedExpertsFor(layer))
        const { weightsAtDispatch } = how
        await expectLayer(layer, { ...world, kernel: healthy }, { weightsAtDispatch })
        await healthy.experts.close()
      },
      { ...options, experts: (rank) => (rank === 1 ? broken(part) : batchedExpertsFor(layer)), timeoutMs: never },
    )
  })

  test('by an abort of one rank alone: the others hear of it, and those that abort, too, do not fail', async () => {
    await onLlRanks(
      three,
      async (world) => {
        const { rank, stream, kernel } = world
        const signal = rank === 0 ? {} : { signal: AbortSignal.abort(new Error('enough')) }
        const running = kernel.apply({ ...three.argumentsOf(rank), ...signal, stream })
        const error = await failureOf(running.then(() => stream.synchronize()))
        expect(error.code).toBe('ERR_MOE_EP_ABORTED')
        if (rank === 0) expect(error.message).toBe('low-latency combine: refused by rank 1: ERR_MOE_EP_ABORTED')
        await stream.synchronize()
        await expectLayer(three, world)
      },
      { timeoutMs: never },
    )
  })
})
