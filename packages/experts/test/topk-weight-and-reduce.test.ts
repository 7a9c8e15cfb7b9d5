import { getDevice, Tensor } from '@moe-ep/core'
import { afterAll, describe, expect, it } from 'vitest'
import { contiguousWeightAndReduce, delegateWeightAndReduce, noWeightAndReduce } from '../src/index.js'

const stream = getDevice('cpu').createStream({ threads: 1 })
afterAll(() => stream.close())

const topkIdx = Tensor.from([0, 4, -1, 2, -1, -1], [3, 2], 'i32')
const topkWeights = Tensor.from([0.5, 2, NaN, 3, NaN, NaN], [3, 2], 'f32')
const values = [1, 2, 10, 20, NaN, NaN, -1, 4, NaN, NaN, NaN, NaN]
const sums = [20.5, 41, -3, 12, 0, 0]

describe('contiguousWeightAndReduce', () => {
  it.each([[[3, 2, 2]], [[6, 2]]])(
    'weights and sums slots of shape %j, and reads none without an expert',
    async (shape) => {
      const expertOutput = Tensor.from(values, shape, 'bf16')
      const sum = contiguousWeightAndReduce.apply({ expertOutput, topkIdx, topkWeights, stream })
      await stream.synchronize()
      expect([sum.dtype, Array.from(sum.toNumbers())]).toEqual(['bf16', sums])
    },
  )

  it('writes into the output that it is given', async () => {
    const output = Tensor.from([7, 7, 7, 7, 7, 7], [3, 2], 'f32')
    const expertOutput = Tensor.from(values, [6, 2], 'f32')
    expect(contiguousWeightAndReduce.apply({ output, expertOutput, topkIdx, topkWeights, stream })).toBe(output)
    await stream.synchronize()
    expect(Array.from(output.toNumbers())).toEqual(sums)
  })

  it('refuses rows that are not one for each slot, and weights of other slots', () => {
    const code = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
    const expertOutput = Tensor.zeros([3, 2], 'f32')
    expect(() => contiguousWeightAndReduce.apply({ expertOutput, topkIdx, topkWeights, stream })).toThrow(code)
    const rows = Tensor.zeros([6, 2], 'f32')
    const others = Tensor.zeros([3, 1], 'f32')
    expect(() => contiguousWeightAndReduce.apply({ expertOutput: rows, topkIdx, topkWeights: others, stream })).toThrow(
      code,
    )
  })
})

describe('the others', () => {
  const args = { expertOutput: Tensor.zeros([3, 2], 'f32'), topkIdx, topkWeights, stream }

  it('noWeightAndReduce gives back what it gets, or copies it bit for bit', async () => {
    expect(noWeightAndReduce.apply(args)).toBe(args.expertOutput)
    expect(noWeightAndReduce.apply({ ...args, output: args.expertOutput })).toBe(args.expertOutput)
    const expertOutput = Tensor.from([1, -0, NaN, 4, 5, 6], [3, 2], 'f32')
    const output = Tensor.zeros([3, 2], 'f32')
    expect(noWeightAndReduce.apply({ ...args, expertOutput, output })).toBe(output)
    await stream.synchronize()
    expect(Array.from(output.toNumbers())).toEqual([1, -0, NaN, 4, 5, 6])
    for (const wrong of [Tensor.zeros([2, 2], 'f32'), Tensor.zeros([3, 2], 'bf16')]) {
      expect(() => noWeightAndReduce.apply({ ...args, output: wrong })).toThrow(
        expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
      )
    }
  })

  it('delegateWeightAndReduce is to be replaced', () => {
    expect(() => delegateWeightAndReduce.apply(args)).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_UNSUPPORTED' }),
    )
  })
})
