import { decode, Tensor } from '@moe-ep/core'
import {
  BatchedExperts,
  contiguousWeightAndReduce,
  delegateWeightAndReduce,
  type Experts,
  GroupedExperts,
  referenceEngines,
} from '@moe-ep/experts'
import { linearPlacement } from '@moe-ep/layout'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { failureOf, type Rank, rowsOnHost, withWorld } from '../../intranode-ht/test/world.js'
import {
  BatchedPrepareAndFinalize,
  HtPrepareAndFinalize,
  type InputQuant,
  LocalPrepareAndFinalize,
  ModularKernel,
  type ModularKernelArguments,
  type ModularKernelOptions,
  NaivePrepareAndFinalize,
  type PrepareAndFinalize,
} from '../src/index.js'
import { Layer, type LayerShape, rounded, sizesFor } from './layer.js'
import { throughFp8 } from './through-fp8.js'

const transports = ['ht', 'ht with a stream of its own', 'naive', 'local'] as const
type Transport = (typeof transports)[number]

interface Variant extends ModularKernelOptions {
  readonly quant?: InputQuant
  readonly experts?: (rank: number) => Experts
  readonly extra?: Partial<ModularKernelArguments>
}

/** The outputs of a layer on all ranks, over one transport. */
async function outputsOf(layer: Layer, transport: Transport, variant: Variant = {}): Promise<number[][][]> {
  const outputs: number[][][] = []
  const { quant, experts = () => new GroupedExperts(referenceEngines()), extra, ...options } = variant
  await withWorld(layer.numRanks, sizesFor(layer.shape), async (ranks) => {
    await Promise.all(
      ranks.map(async (world) => {
        const { rank, stream, buffer } = world
        const commStream =
          transport === 'ht with a stream of its own' ? buffer.device.createStream({ threads: 1 }) : undefined
        const own = experts(rank)
        const kernel = new ModularKernel(make(transport, world, { quant, commStream }), own, options)
        const output = await kernel.apply({ ...layer.argumentsOf(rank), ...extra, stream })
        await stream.synchronize()
        outputs[rank] = rowsOnHost(output)
        await own.close()
        await commStream?.close()
      }),
    )
  })
  return outputs
}

function make(
  transport: Transport,
  { buffer, group }: Rank,
  { quant, commStream }: { readonly quant: InputQuant | undefined; readonly commStream: Rank['stream'] | undefined },
): PrepareAndFinalize {
  const options = { ...(quant && { quant }) }
  if (transport === 'local') return new LocalPrepareAndFinalize(options)
  if (transport === 'naive') return new NaivePrepareAndFinalize(group, options)
  return new HtPrepareAndFinalize(buffer, { ...options, ...(commStream && { commStream }) })
}

const transportsFor = (numRanks: number): readonly Transport[] =>
  transports.filter((one) => one !== 'local' || numRanks === 1)
const wide: LayerShape = { numTokens: [5, 0, 3], hidden: 48, intermediate: 6, numExperts: 5, topk: 3, seed: 11 }

describe('every transport gives the dense loop, bit for bit', () => {
  test.each([1, 2, 3])('on %i ranks, whole and in chunks', async (numRanks) => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          numTokens: fc.array(fc.nat(6), { minLength: numRanks, maxLength: numRanks }),
          hidden: fc.constantFrom(8, 24),
          intermediate: fc.integer({ min: 1, max: 6 }),
          numExperts: fc.integer({ min: 1, max: 6 }),
          topk: fc.integer({ min: 1, max: 4 }),
          seed: fc.nat(1e6),
        }),
        fc.constantFrom(undefined, 1, 2, 5),
        async (shape, maxRowsPerChunk) => {
          const layer = new Layer(shape)
          const expected = shape.numTokens.map((_, rank) => layer.expectedOf(rank))
          const options = { ...(maxRowsPerChunk !== undefined && { maxRowsPerChunk }) }
          for (const transport of transportsFor(numRanks)) {
            expect(await outputsOf(layer, transport, options)).toEqual(expected)
          }
        },
      ),
      { numRuns: 12 },
    )
  })

  test.each([1, 2, 3])('on %i ranks, rows as fp8 with scales, whole and in chunks', async (numRanks) => {
    // 2 and more saturate under the given scale, so that it is told apart from one that is found.
    const scale = Tensor.from([1.9 / 448], [1], 'f32')
    const quants = [
      { kind: 'fp8-block' },
      { kind: 'fp8-block', groupSize: 16 },
      { kind: 'fp8-token' },
      { kind: 'fp8-tensor', scale },
    ] as const
    const seen = new Set<string>()
    for (const quant of quants) {
      const layer = new Layer({ ...wide, numTokens: wide.numTokens.slice(0, numRanks) })
      const expected = await Promise.all(
        layer.inputs.map(async ({ x }, rank) => layer.expectedOf(rank, await throughFp8(x, quant))),
      )
      seen.add(JSON.stringify(expected))
      for (const transport of transportsFor(numRanks)) {
        // 48 elements are one scale in the buffer's default; more must be asked for, which the plain transports need not.
        if ('groupSize' in quant && transport.startsWith('ht')) continue
        expect(await outputsOf(layer, transport, { quant })).toEqual(expected)
        expect(await outputsOf(layer, transport, { quant, maxRowsPerChunk: 2 })).toEqual(expected)
      }
    }
    // A row of 48 is one group of 128; the others differ, or nothing was shown.
    expect(seen.size).toBeGreaterThanOrEqual(3)
  })

  test('fp8 is within 6e-2 of bf16, and not the same', async () => {
    const layer = new Layer({ ...wide, numTokens: [9, 4] })
    const exact = await outputsOf(layer, 'ht')
    const quantized = await outputsOf(layer, 'ht', { quant: { kind: 'fp8-block' } })
    const pairs = exact.flat(2).map((value, i) => [value, quantized.flat(2)[i]!] as const)
    const largest = Math.max(...pairs.map(([value]) => Math.abs(value)))
    for (const [value, other] of pairs) expect(Math.abs(value - other)).toBeLessThanOrEqual(6e-2 * largest)
    expect(quantized).not.toEqual(exact)
  })

  test.each(['ht', 'naive'] as const)('%s: more ranks than experts', async (transport) => {
    const layer = new Layer({ ...wide, numExperts: 2 })
    expect(await outputsOf(layer, transport)).toEqual([0, 1, 2].map((rank) => layer.expectedOf(rank)))
  })
})

describe('router weights on the input', () => {
  const layer = new Layer({ ...wide, topk: 1 })
  const extra = { applyRouterWeightOnInput: true }

  test.each(['ht', 'ht with a stream of its own', 'naive'] as const)(
    '%s: rounded to bf16, the product too, and never again',
    async (transport) => {
      const expected = layer.inputs.map(({ x, topkIdx, topkWeights }) => {
        return x.map((row, token) => {
          const id = topkIdx[token]![0]!
          if (id < 0) return Array.from(row, () => 0)
          const weight = rounded('bf16', topkWeights[token]!)[0]!
          const weighted = rounded(
            'bf16',
            row.map((value) => value * weight),
          )
          // Whoever starts a sum at +0 leaves no -0.
          return Array.from(layer.expertRow(id, weighted), (value) => value + 0)
        })
      })
      const outputs = await outputsOf(layer, transport, { extra })
      expect(outputs).toEqual(expected)
      expect(outputs).not.toEqual(layer.inputs.map((_, rank) => layer.expectedOf(rank)))
    },
  )

  test.each(['ht', 'naive'] as const)('%s: only for top-1, refused before anything is sent', async (transport) => {
    const error = await failureOf(outputsOf(new Layer(wide), transport, { extra }))
    expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', 'applyRouterWeightOnInput'])
  })
})

describe('quantising', () => {
  test('is left to experts that want to do it themselves', async () => {
    const layer = new Layer({ ...wide, numTokens: [4, 3] })
    const dtypes = new Set<string>()
    const experts = (): Experts => {
      const inner = new GroupedExperts(referenceEngines())
      return {
        ...{ activationFormat: 'standard', weightAndReduce: inner.weightAndReduce, expectsUnquantizedInputs: true },
        apply: (args) => (dtypes.add(args.hiddenStates.dtype), inner.apply(args)),
        close: () => inner.close(),
      }
    }
    for (const transport of ['ht', 'naive'] as const) {
      const outputs = await outputsOf(layer, transport, { experts, quant: { kind: 'fp8-block' } })
      expect(outputs).toEqual([layer.expectedOf(0), layer.expectedOf(1)])
    }
    expect([...dtypes]).toEqual(['bf16'])
  })

  test('in a way that is none is refused by name', () => {
    for (const [quant, argument] of [
      [{ kind: 'fp4' }, 'quant'],
      [{ kind: 'fp8-block', groupSize: 0 }, 'quant.groupSize'],
      [{ kind: 'fp8-tensor' }, 'quant.scale'],
      [{ kind: 'fp8-tensor', scale: Tensor.zeros([2], 'f32') }, 'quant.scale'],
    ] as const) {
      expect(() => new LocalPrepareAndFinalize({ quant: quant as never })).toThrow(
        expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }),
      )
    }
  })
})

describe('experts that leave a row for every slot', () => {
  /** Rows [M * topk, K] in bf16, NaN where the slot is another rank's. */
  const perSlot = (layer: Layer, rank: number, weightAndReduce = contiguousWeightAndReduce): Experts => ({
    ...{ activationFormat: 'standard', weightAndReduce },
    workspaceShapes: ({ numTokens, topk, hidden, outputDtype }) => ({
      workspace13: { dtype: 'u8', shape: [0] },
      workspace2: { dtype: 'u8', shape: [0] },
      output: { dtype: outputDtype, shape: [numTokens * topk, hidden] },
    }),
    async apply({ output, hiddenStates, topkIdx, stream }) {
      await stream.synchronize()
      const { begin } = linearPlacement(layer.shape.numExperts, layer.numRanks).rangeOf(rank)
      const [rows, topk] = topkIdx.shape as [number, number]
      const ids = Array.from(topkIdx.data, Number)
      const x = decode(hiddenStates.dtype, hiddenStates.data) as Float32Array
      const { hidden } = layer.shape
      const values = Array.from({ length: rows }, (_, row) =>
        ids.slice(row * topk, (row + 1) * topk).flatMap((id) => {
          const input = x.slice(row * hidden, (row + 1) * hidden)
          return id < 0 ? Array.from(input, () => NaN) : Array.from(layer.expertRow(begin + id, input))
        }),
      )
      output.data.set(Tensor.from(values.flat(), output.shape, output.dtype).data as never)
    },
    close: async () => {},
  })

  test.each([undefined, 1, 2, 3])('are weighted and summed by finalize, in chunks of %s', async (maxRowsPerChunk) => {
    const layer = new Layer({ ...wide, hidden: 16 })
    const options = { ...(maxRowsPerChunk !== undefined && { maxRowsPerChunk }) }
    for (const weightAndReduce of [contiguousWeightAndReduce, delegateWeightAndReduce]) {
      for (const transport of ['ht', 'naive'] as const) {
        const experts = (rank: number): Experts => perSlot(layer, rank, weightAndReduce)
        const outputs = await outputsOf(layer, transport, { ...options, experts })
        expect(outputs).toEqual([0, 1, 2].map((rank) => layer.expectedOf(rank)))
      }
    }
  })
})

describe('naive prepare and finalize', () => {
  test('ids out of range, and ranks that differ, are refused on all ranks', async () => {
    const layer = new Layer({ ...wide, numTokens: [1, 1] })
    await withWorld(2, sizesFor(layer.shape), async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, group, stream }) => {
          const kernel = new ModularKernel(new NaivePrepareAndFinalize(group), new GroupedExperts(referenceEngines()))
          const args = { ...layer.argumentsOf(rank), stream }
          const wild = { ...args, topkIdx: Tensor.from([rank === 0 ? 99 : 0, 0, 0], [1, 3], 'i32') }
          expect((await failureOf(kernel.apply(wild))).details['argument']).toBe('topkIdx')
          // Each rank's arguments are right by themselves: of 5 experts rank 0 owns 3, of 6 rank 1 does.
          const weightsFor = (hidden: number, experts: number) => ({
            w13: Tensor.zeros([experts, 12, hidden], 'f32'),
            w2: Tensor.zeros([experts, hidden, 6], 'f32'),
          })
          const more = { numExperts: 5 + rank, weights: weightsFor(48, 3) }
          expect((await failureOf(kernel.apply({ ...args, ...more }))).code).toBe('ERR_MOE_EP_MISMATCH')
          const hidden = 16 + 16 * rank
          const narrow = {
            hiddenStates: Tensor.zeros([1, hidden], 'bf16'),
            weights: weightsFor(hidden, args.weights.w13.shape[0]!),
          }
          expect((await failureOf(kernel.apply({ ...args, ...narrow }))).code).toBe('ERR_MOE_EP_MISMATCH')
          const output = await kernel.apply(args)
          expect(rowsOnHost(output)).toEqual(layer.expectedOf(rank))
        }),
      )
    })
  })
})

describe('batched prepare, experts and finalize', () => {
  /** A kernel over one process that owns all experts, whose rows beyond the counts are NaN when the experts see them. */
  function batchedKernel(layer: Layer, quant?: InputQuant): ModularKernel {
    const { numExperts, numTokens, topk } = layer.shape
    const maxNumTokens = Math.max(1, numTokens[0]! * topk)
    const inner = new BatchedPrepareAndFinalize({ maxNumTokens, numLocalExperts: numExperts, ...(quant && { quant }) })
    const experts = new BatchedExperts(referenceEngines(), { maxNumTokens, numDispatchers: 1 })
    const { prepare } = inner
    inner.prepare = async (args) => {
      const prepared = await prepare.call(inner, args)
      await args.stream.synchronize()
      const counts = Array.from(prepared.tokens!.numTokens.data, Number)
      for (const [tensor, poison] of [
        [prepared.hiddenStates, quant ? 0x7f : 0x7fff],
        [prepared.scales, NaN],
      ] as const) {
        if (tensor === undefined) continue
        const [, rows, columns] = tensor.shape as [number, number, number]
        for (const [expert, count] of counts.entries()) {
          tensor.data.fill(poison as never, (expert * rows + count) * columns, (expert + 1) * rows * columns)
        }
      }
      return prepared
    }
    return new ModularKernel(inner, experts)
  }

  test('give the dense loop, whatever lies beyond the counts', async () => {
    const quants = fc.constantFrom<(InputQuant | undefined)[]>(
      undefined,
      { kind: 'fp8-block' },
      { kind: 'fp8-token' },
      { kind: 'fp8-tensor', scale: Tensor.from([0.01], [1], 'f32') },
    )
    await fc.assert(
      fc.asyncProperty(fc.nat(5), fc.nat(1e6), quants, async (tokens, seed, quant) => {
        const layer = new Layer({ ...wide, numTokens: [tokens], seed })
        const kernel = batchedKernel(layer, quant)
        const { x } = layer.inputs[0]!
        const output = await kernel.apply(layer.argumentsOf(0))
        await output.device.defaultStream.synchronize()
        expect(rowsOnHost(output)).toEqual(layer.expectedOf(0, quant ? await throughFp8(x, quant) : x))
        await kernel.experts.close()
      }),
      { numRuns: 15 },
    )
  })

  test('of one of two ranks: the sum over its own experts', async () => {
    const layer = new Layer({ ...wide, numTokens: [4], numExperts: 4 })
    const sums = await Promise.all(
      [0, 1].map(async (rank) => {
        const prepareAndFinalize = new BatchedPrepareAndFinalize({ maxNumTokens: 12, numLocalExperts: 2, rank })
        const experts = new BatchedExperts(referenceEngines(), { maxNumTokens: 12, numDispatchers: 1 })
        const kernel = new ModularKernel(prepareAndFinalize, experts)
        const { weights, ...args } = layer.argumentsOf(0)
        const own = { w13: weights.w13.slice(rank * 2, rank * 2 + 2), w2: weights.w2.slice(rank * 2, rank * 2 + 2) }
        const output = await kernel.apply({ ...args, weights: own })
        await output.device.defaultStream.synchronize()
        return rowsOnHost(output)
      }),
    )
    // The same two partial sums as two ranks would make, so the same bits.
    const pair = new Layer({ ...layer.shape, numTokens: [4, 0] })
    const total = sums[0]!.map((row, token) =>
      Array.from(
        rounded(
          'bf16',
          row.map((value, i) => value + sums[1]![token]![i]!),
        ),
      ),
    )
    expect(total).toEqual(pair.expectedOf(0))
    const own = layer.inputs[0]!.topkIdx.map((ids) => ids.some((id) => id >= 0 && id < 2))
    for (const [token, row] of sums[0]!.entries()) expect(row.some((value) => value !== 0)).toBe(own[token])
  })

  test('too many slots for an expert are a capacity error; what prepare cannot take is refused', async () => {
    const layer = new Layer({ ...wide, numTokens: [3], choose: () => 1 })
    const prepareAndFinalize = new BatchedPrepareAndFinalize({ maxNumTokens: 3, numLocalExperts: 5 })
    const experts = new BatchedExperts(referenceEngines(), { maxNumTokens: 3, numDispatchers: 1 })
    const kernel = new ModularKernel(prepareAndFinalize, experts)
    expect((await failureOf(kernel.apply(layer.argumentsOf(0)))).code).toBe('ERR_MOE_EP_CAPACITY')
    const large = new Layer({ ...wide, numTokens: [4] })
    expect((await failureOf(kernel.apply(large.argumentsOf(0)))).details['argument']).toBe('hiddenStates')
    const few = await failureOf(kernel.apply({ ...layer.argumentsOf(0), numExperts: 4 }))
    expect(few.details['argument']).toBe('numExperts')
  })
})
