import { getDevice, Tensor } from '@moe-ep/core'
import { dequantizePerTokenGroup, quantizePerTokenGroup } from '@moe-ep/quant'
import { afterAll, describe, expect, it } from 'vitest'
import { BatchedExperts, type ExpertsArguments, GroupedExperts, onnxEngines, referenceEngines } from '../src/index.js'
import { madeUpExperts, weightedSum } from './fixture.js'
import { randomValues, relativeError } from './random.js'

const stream = getDevice('cpu').createStream({ threads: 1 })
afterAll(() => stream.close())

const sizes = { hidden: 40, intermediate: 6, numExperts: 3 }
const ids = [
  [0, 2],
  [2, -1],
  [-1, -1],
  [2, 2],
]

/** fp8 rows with scales, and what a loop over tokens and slots gives on the dequantised rows. */
async function build(groupSize: number, outDtype: 'bf16' | 'f32' | 'f16', weightDtype: 'f32' | 'bf16' = 'bf16') {
  const { hidden } = sizes
  const x = Tensor.from(randomValues(ids.length * hidden, 1), [ids.length, hidden], 'bf16')
  const { values, scales } = quantizePerTokenGroup(x, { groupSize, stream })
  const exact = dequantizePerTokenGroup(values, scales, { groupSize, dtype: 'f32', stream })
  await stream.synchronize()
  const { weights, row } = madeUpExperts(sizes, weightDtype, outDtype)
  const topkWeights = randomValues(8, 4)
  const expected = ids.map((slots, token) => {
    const input = (exact.data as Float32Array).subarray(token * hidden, (token + 1) * hidden)
    const chosen = slots.map((id, slot) => ({ id, weight: topkWeights[token * 2 + slot]! }))
    return weightedSum(input, chosen, { row, outDtype })
  })
  const args: ExpertsArguments = {
    ...{
      output: Tensor.zeros([ids.length, hidden], outDtype),
      hiddenStates: values,
      scales,
      groupSize,
      weights,
      stream,
    },
    topkIdx: Tensor.from(ids.flat(), [ids.length, 2], 'i32'),
    topkWeights: Tensor.from(topkWeights, [ids.length, 2], 'f32'),
  }
  return { args, expected: expected.flat() }
}

describe('fp8 rows with scales', () => {
  it.each([
    [128, 'bf16', 'bf16'],
    [16, 'bf16', 'f32'],
    [32, 'f32', 'bf16'],
    [8, 'f16', 'f32'],
  ] as const)(
    'groups of %i, output %s, weights %s: a loop over the dequantised rows, bit for bit',
    async (groupSize, outDtype, weightDtype) => {
      const { args, expected } = await build(groupSize, outDtype, weightDtype)
      const experts = new GroupedExperts(referenceEngines())
      await experts.apply(args)
      await stream.synchronize()
      expect(Array.from(args.output.toNumbers())).toEqual(expected)
      await experts.close()
    },
  )

  it('the ONNX engine agrees', async () => {
    const { args, expected } = await build(16, 'bf16')
    const experts = new GroupedExperts(onnxEngines())
    await experts.apply(args)
    await stream.synchronize()
    expect(relativeError(args.output.toNumbers() as Float32Array, Float32Array.from(expected))).toBeLessThan(8e-3)
    await experts.close()
  })

  it.each<[string, string, (args: ExpertsArguments) => Partial<ExpertsArguments>]>([
    ['rows that are not fp8', 'hiddenStates', () => ({ hiddenStates: Tensor.zeros([4, 40], 'bf16') })],
    ['too few scales', 'scales', () => ({ scales: Tensor.zeros([4, 2], 'f32') })],
    ['scales of other rows', 'scales', () => ({ scales: Tensor.zeros([3, 3], 'f32') })],
    ['an fp8 output', 'output', () => ({ output: Tensor.zeros([4, 40], 'fp8e4m3') })],
    ['groups of nothing', 'groupSize', () => ({ groupSize: 0 })],
  ])('refuses %s', async (_, argument, change) => {
    const { args } = await build(16, 'bf16')
    const experts = new GroupedExperts(referenceEngines())
    await expect(experts.apply({ ...args, ...change(args) })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_ARGUMENT',
      details: { argument },
    })
    await experts.close()
  })
})

describe('a rank without experts', () => {
  it('writes zeros over what was there', async () => {
    const experts = new GroupedExperts(referenceEngines())
    const output = Tensor.from([1, 2, 3, NaN], [2, 2], 'bf16')
    await experts.apply({
      ...{ output, hiddenStates: Tensor.zeros([2, 2], 'bf16'), stream },
      weights: { w13: Tensor.zeros([0, 2, 2], 'f32'), w2: Tensor.zeros([0, 2, 1], 'f32') },
      topkIdx: Tensor.from([-1, -1], [2, 1], 'i32'),
      topkWeights: Tensor.from([1, 1], [2, 1], 'f32'),
    })
    await stream.synchronize()
    expect(Array.from(output.toNumbers())).toEqual([0, 0, 0, 0])
    await experts.close()
  })
})

describe('BatchedExperts', () => {
  const { hidden, numExperts } = sizes
  const perExpert = 4
  const counts = [0, 3, 4]

  /** Rows [E, T, K] with NaN beyond the counts, and what must be in the output: NaN where nothing may be written. */
  async function buildBatched(quantized: boolean) {
    const { weights, row } = madeUpExperts(sizes, 'bf16', 'bf16')
    const x = Tensor.from(randomValues(numExperts * perExpert * hidden, 9), [numExperts * perExpert, hidden], 'bf16')
    const q = quantizePerTokenGroup(x, { groupSize: 16, stream })
    const exact = quantized ? dequantizePerTokenGroup(q.values, q.scales, { groupSize: 16, dtype: 'f32', stream }) : x
    await stream.synchronize()
    const numbers = exact.toNumbers() as Float32Array
    const expected = new Float32Array(x.numel).fill(NaN)
    for (let place = 0; place < numExperts * perExpert; place++) {
      const expert = Math.floor(place / perExpert)
      const [begin, end] = [place * hidden, (place + 1) * hidden]
      if (place % perExpert < counts[expert]!) {
        expected.set(row(expert, numbers.slice(begin, end)), begin)
      } else {
        x.data.fill(0x7fff as never, begin, end)
        q.values.data.fill(0x7f as never, begin, end)
        q.scales.data.fill(NaN as never, place * q.scales.shape[1]!, (place + 1) * q.scales.shape[1]!)
      }
    }
    const batch = [numExperts, perExpert]
    const args: ExpertsArguments = {
      output: Tensor.wrap(new Uint16Array(x.numel).fill(0x7fff), [...batch, hidden], 'bf16'),
      hiddenStates: (quantized ? q.values : x).reshape([...batch, hidden]),
      ...(quantized && { scales: q.scales.reshape([...batch, q.scales.shape[1]!]), groupSize: 16 }),
      ...{ weights, stream, topkIdx: Tensor.zeros([5, 2], 'i64'), topkWeights: Tensor.zeros([5, 2], 'f32') },
      tokens: { numTokens: Tensor.from(counts, [numExperts], 'i32'), numTokensHost: undefined },
    }
    return { args, expected: Array.from(expected) }
  }

  it.each([false, true])(
    'quantised %s: garbage beyond the counts is neither read nor overwritten',
    async (quantized) => {
      const { args, expected } = await buildBatched(quantized)
      const experts = new BatchedExperts(referenceEngines(), { maxNumTokens: 2, numDispatchers: 2 })
      await experts.apply(args)
      await stream.synchronize()
      expect(Array.from(args.output.toNumbers())).toEqual(expected)
      const again = { ...args.tokens!, numTokensHost: Int32Array.from(counts) }
      await experts.apply({ ...args, tokens: again })
      expect(Array.from(args.output.toNumbers())).toEqual(expected)
      await experts.close()
    },
  )

  it.each(['f32', 'ue8m0', 'ue8m0-packed'] as const)(
    '%s scales that lie column by column are read in place',
    async (scaleFormat) => {
      const { args } = await buildBatched(false)
      const { hiddenStates, output } = args
      const rows = hiddenStates.reshape([numExperts * perExpert, hidden])
      for (let i = 0; i < rows.numel; i++) if (rows.data[i] === 0x7fff) rows.data[i] = 0 as never
      const { values, scales } = quantizePerTokenGroup(rows, {
        groupSize: 8,
        scaleFormat,
        scaleLayout: 'row-major',
        stream,
      })
      await stream.synchronize()
      const columns = scales.shape[1]!
      const shape = [numExperts, perExpert, columns]
      const turned = Tensor.zeros([numExperts, columns, perExpert], scales.dtype)
      for (let place = 0; place < numExperts * perExpert; place++) {
        const [expert, row] = [Math.floor(place / perExpert), place % perExpert]
        for (let column = 0; column < columns; column++)
          turned.data[(expert * columns + column) * perExpert + row] = scales.data[place * columns + column] as never
      }
      const strides = [columns * perExpert, 1, perExpert]
      const columnMajor = new Tensor({ memory: turned.memory, dtype: scales.dtype, shape, strides })
      const quantized = { ...args, hiddenStates: values.reshape(hiddenStates.shape), groupSize: 8 }
      const experts = new BatchedExperts(referenceEngines(), { maxNumTokens: 4, numDispatchers: 1 })
      await experts.apply({ ...quantized, scales: scales.reshape(shape) })
      const expected = Array.from(output.toNumbers())
      expect(expected.some((value) => value !== 0)).toBe(true)
      output.data.fill(0x7fff as never)
      await experts.apply({ ...quantized, scales: columnMajor })
      expect(Array.from(output.toNumbers())).toEqual(expected)
      await experts.close()
    },
  )

  it('packed scales are refused where rows must be grouped first', async () => {
    const { args } = await build(16, 'bf16')
    const experts = new GroupedExperts(referenceEngines())
    const wrong = experts.apply({ ...args, scales: Tensor.zeros([4, 1], 'i32') })
    await expect(wrong).rejects.toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'scales' } })
    await experts.close()
  })

  it.each<[string, string, Partial<ExpertsArguments>]>([
    ['no counts', 'tokens', { tokens: undefined as never }],
    [
      'counts of other experts',
      'tokens',
      { tokens: { numTokens: Tensor.zeros([2], 'i32'), numTokensHost: undefined } },
    ],
    [
      'a count above the rows',
      'tokens',
      { tokens: { numTokens: Tensor.zeros([3], 'i32'), numTokensHost: Int32Array.of(0, 5, 0) } },
    ],
    [
      'rows of other experts',
      'w13',
      { hiddenStates: Tensor.zeros([2, 4, 40], 'bf16'), output: Tensor.zeros([2, 4, 40], 'bf16') },
    ],
    [
      'more rows than they are made for',
      'hiddenStates',
      { hiddenStates: Tensor.zeros([3, 5, 40], 'bf16'), output: Tensor.zeros([3, 5, 40], 'bf16') },
    ],
  ])('refuses %s', async (_, argument, wrong) => {
    const { args } = await buildBatched(false)
    const experts = new BatchedExperts(referenceEngines(), { maxNumTokens: 4, numDispatchers: 1 })
    const code = 'ERR_MOE_EP_ARGUMENT'
    await expect(experts.apply({ ...args, ...wrong })).rejects.toMatchObject({ code, details: { argument } })
    await experts.close()
  })

  it('is not made without its sizes', () => {
    const make = (): unknown => new BatchedExperts(referenceEngines(), { maxNumTokens: 4 } as never)
    expect(make).toThrow(expect.objectContaining({ details: { argument: 'numDispatchers' } }))
  })
})
