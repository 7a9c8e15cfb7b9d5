import { getDevice, Tensor } from '@moe-ep/core'
import { BatchedExperts, delegateWeightAndReduce, type ExpertsArguments, referenceEngines } from '@moe-ep/experts'
import { afterAll, expect, it } from 'vitest'
import { ThroughHost, toHost } from '../../src/layer/through-host.js'

const stream = getDevice('cpu').createStream()
afterAll(() => stream.close())

it('a copy lies as the tensor does, column by column too', async () => {
  const { memory } = Tensor.from([1, 2, 3, 4, 5, 6], [6], 'f32')
  const turned = new Tensor({ memory, dtype: 'f32', shape: [1, 3, 2], strides: [6, 1, 3] })
  const copy = await toHost(turned, stream)
  expect([copy.shape, copy.strides]).toEqual([turned.shape, turned.strides])
  expect(copy.memory).not.toBe(memory)
  const flat = new Tensor({ memory: copy.memory, dtype: 'f32', shape: [6] })
  expect(Array.from(flat.toNumbers())).toEqual([1, 2, 3, 4, 5, 6])
  const gaps = new Tensor({ memory, dtype: 'f32', shape: [2], strides: [3] })
  await expect(toHost(gaps, stream)).rejects.toMatchObject({ details: { argument: 'tensor' } })
})

it('batched experts behind it say what they take, and compute the same', async () => {
  const inner = new BatchedExperts(referenceEngines(), { maxNumTokens: 2, numDispatchers: 2 })
  const through = new ThroughHost(inner)
  expect(through).toMatchObject({ maxNumTokens: 2, numDispatchers: 2, scaleFormats: inner.scaleFormats })
  expect(through.weightAndReduce).toBe(delegateWeightAndReduce)
  const ramp = (length: number): number[] => Array.from({ length }, (_, i) => ((i * 7) % 13) / 13 - 0.4)
  const args: Omit<ExpertsArguments, 'output'> = {
    hiddenStates: Tensor.from(ramp(64), [2, 4, 8], 'bf16'),
    weights: { w13: Tensor.from(ramp(96), [2, 6, 8], 'f32'), w2: Tensor.from(ramp(48), [2, 8, 3], 'f32') },
    ...{ topkIdx: Tensor.zeros([4, 1], 'i32'), topkWeights: Tensor.zeros([4, 1], 'f32'), stream },
    tokens: { numTokens: Tensor.from([3, 1], [2], 'i32'), numTokensHost: undefined },
  }
  const outputs = [inner, through].map(() => Tensor.zeros([2, 4, 8], 'bf16'))
  await inner.apply({ ...args, output: outputs[0]! })
  await through.apply({ ...args, output: outputs[1]! })
  await stream.synchronize()
  const [direct, copied] = outputs.map((output) => Array.from(output.toNumbers()))
  // Rows past the counts are garbage.
  for (const [from, to] of [
    [0, 24],
    [32, 40],
  ] as const) {
    expect(copied!.slice(from, to)).toEqual(direct!.slice(from, to))
    expect(direct!.slice(from, to).some((value) => value !== 0)).toBe(true)
  }
  await through.close()
})
