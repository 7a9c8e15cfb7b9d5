import { MoeEpError, Tensor } from '@moe-ep/core'
import { type Experts, GroupedExperts, noWeightAndReduce, referenceEngines } from '@moe-ep/experts'
import { describe, expect, test } from 'vitest'
import { failureOf } from '../../intranode-ht/test/world.js'
import { HtPrepareAndFinalize, ModularKernel, type ModularKernelArguments } from '../src/index.js'
import { base, expectLayer, expertsThat, type HtRank, never, onHtRanks } from './ht-layer.js'
import { Layer } from './layer.js'

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
    const body = async (rank: HtRank): Promise<void> => {
      for (let i = 0; i < 5; i++) {
        const error = await failureOf(rank.kernel.apply({ ...layer.argumentsOf(rank.rank), stream: rank.stream }))
        expect([error.code, error.message]).toEqual(['ERR_MOE_EP_INTERNAL', 'out of luck'])
        expect(rank.buffer.freeSlots).toBe(2)
      }
      await rank.group.barrier()
      failing = false
      await expectLayer(layer, rank)
    }
    await onHtRanks(layer, body, { experts: () => experts })
  })

  test('of the strategy free the slot, too, and keep their own code', async () => {
    const weightAndReduce = {
      ...noWeightAndReduce,
      apply() {
        throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'not today')
      },
    }
    const experts = expertsThat((args) => healthy.apply(args), { weightAndReduce })
    const body = async ({ rank, stream, kernel, buffer }: HtRank): Promise<void> => {
      const error = await failureOf(kernel.apply({ ...layer.argumentsOf(rank), stream }))
      expect(error.code).toBe('ERR_MOE_EP_UNSUPPORTED')
      expect(buffer.freeSlots).toBe(2)
    }
    await onHtRanks(layer, body, { experts: () => experts })
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
    const body = async (rank: HtRank): Promise<void> => {
      const { stream, kernel, buffer } = rank
      const running = kernel.apply({ ...layer.argumentsOf(rank.rank), stream }).then(() => stream.synchronize())
      const error = await failureOf(running)
      const told = 'intranode combine: refused by rank 1: '
      expect([error.code, error.message]).toEqual([noSuchGemm.code, `${rank.rank === 1 ? '' : told}no such GEMM`])
      await expectLayer(layer, { ...rank, kernel: new ModularKernel(new HtPrepareAndFinalize(buffer), healthy) })
    }
    await onHtRanks(layer, body, { experts: wrong, timeoutMs: never })
  })

  test('by an abort signal free the slot', async () => {
    await onHtRanks(layer, async (rank) => {
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
    await onHtRanks(layer, async (rank) => {
      const args = layer.argumentsOf(rank.rank)
      const error = await failureOf(rank.kernel.apply({ ...args, ...wrong(args), stream: rank.stream }))
      expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', argument])
      await expectLayer(layer, rank)
    })
  })

  test.each(cases)('%s on one rank: all refuse, and the next layer is right', async (_, argument, wrong) => {
    const body = async (rank: HtRank): Promise<void> => {
      const { stream, kernel } = rank
      const args = layer.argumentsOf(rank.rank)
      const error = await failureOf(kernel.apply({ ...args, ...(rank.rank === 0 && wrong(args)), stream }))
      const told = 'intranode dispatch: refused by rank 0: '
      expect(error.code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(error.message.startsWith(`${rank.rank === 0 ? '' : told}${argument}: expected`)).toBe(true)
      await expectLayer(layer, rank)
    }
    await onHtRanks(layer, body, { timeoutMs: never })
  })

  test('a micro-batch that one rank has begun already: all refuse', async () => {
    const body = async (rank: HtRank): Promise<void> => {
      const { prepareAndFinalize } = rank.kernel
      const args = { ...layer.argumentsOf(rank.rank), stream: rank.stream }
      await prepareAndFinalize.prepare(args)
      const error = await failureOf(prepareAndFinalize.prepare({ ...args, microBatch: rank.rank === 1 ? 0 : 1 }))
      expect([error.code, error.message]).toEqual(['ERR_MOE_EP_ARGUMENT', expect.stringContaining('microBatch')])
      prepareAndFinalize.release()
      await expectLayer(layer, rank)
    }
    await onHtRanks(layer, body, { timeoutMs: never })
  })

  test('ids out of range fail the layer on the rank that has them and free its slot', async () => {
    const wild = new Layer({ ...base, numTokens: [2], choose: () => 99 })
    await onHtRanks(wild, async ({ kernel, stream, buffer }) => {
      const { hiddenStates, topkIdx, topkWeights, weights } = wild.argumentsOf(0)
      const error = await failureOf(
        kernel.apply({ hiddenStates, topkIdx, topkWeights, weights, numExperts: 5, stream }),
      )
      expect(error.code).toBe('ERR_MOE_EP_ARGUMENT')
      expect(buffer.freeSlots).toBe(2)
    })
  })
})
