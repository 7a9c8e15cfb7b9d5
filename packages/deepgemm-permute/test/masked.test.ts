import { copyTensor, encode, f32ToBits, Graph, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  expectedM,
  permute,
  permuteMasked,
  type PermuteMaskedOptions,
  reference,
  unpermuteAndReduce,
  unpermuteMaskedAndReduce,
} from '../src/index.js'
import {
  copyToHost,
  device,
  failure,
  firstDifference,
  intoZeros,
  matrix,
  onHost,
  optionsOf,
  randomBits,
  randomNumbers,
  routings,
  rowBytes,
} from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
const ones = (slots: readonly [number, number]): Tensor =>
  Tensor.from(Array<number>(slots[0] * slots[1]).fill(1), slots, 'f32')

/** Rows of all experts as one matrix. */
function flat(rows: Tensor): Tensor {
  return rows.reshape([rows.shape[0]! * rows.shape[1]!, rows.shape[2]!])
}

describe('permuteMasked', () => {
  test('equals the reference on any routing, dtype, hidden size and room', async () => {
    const shapes = fc.record({
      dtype: fc.constantFrom('bf16' as const, 'f16' as const, 'f32' as const, 'fp8e4m3' as const, 'fp8e5m2' as const),
      hidden: fc.constantFrom(1, 7, 128, 300),
      spare: fc.integer({ min: 0, max: 40 }),
    })
    await fc.assert(
      fc.asyncProperty(routings, shapes, async (routing, { dtype, hidden, spare }) => {
        const { ours, reference: plain } = optionsOf(routing, 'i32')
        const maxTokens = Math.max(1, ...reference.countExpertNumTokens(routing.topkIdx, plain)) + spare
        const x = randomBits([routing.topkIdx.length, hidden], dtype)
        const actual = await onHost(permuteMasked(x, { ...ours, maxTokens }))
        const expected = reference.permuteMasked(rowBytes(x), { ...plain, maxTokens })
        const zero = new Uint8Array(hidden * { bf16: 2, f16: 2, f32: 4, fp8e4m3: 1, fp8e5m2: 1 }[dtype])
        expect(actual.rows.shape).toEqual([routing.numLocalExperts, maxTokens, hidden])
        expect(
          firstDifference(
            rowBytes(flat(actual.rows)),
            expected.rows.flat().map((row) => row ?? zero),
          ),
        ).toBeUndefined()
        expect(actual.maskedM.data).toEqual(expected.maskedM)
        expect([...actual.inversePermutation.data]).toEqual(expected.inversePermutation.flat())
        expect(actual.scales).toBeUndefined()
      }),
    )
  })

  test('and back gives the bits that the contiguous layout gives', async () => {
    await fc.assert(
      fc.asyncProperty(
        routings,
        fc.constantFrom('bf16' as const, 'f16' as const, 'f32' as const),
        async (routing, dtype) => {
          const { ours, reference: plain } = optionsOf(routing, 'i64')
          const maxTokens = Math.max(1, ...reference.countExpertNumTokens(routing.topkIdx, plain)) + 2
          const slots = [routing.topkIdx.length, routing.topk] as const
          const x = randomBits([slots[0], 24], dtype)
          const weights = randomNumbers(slots[0] * slots[1])
          const topkWeights = Tensor.copyOf(weights, slots, 'f32')
          const masked = intoZeros((out) => permuteMasked(x, { ...ours, maxTokens, ...out }))
          const contiguous = intoZeros((out) => permute(x, { ...ours, ...out }))
          const fromMasked = await copyToHost(
            unpermuteMaskedAndReduce(masked.rows, { ...ours, ...masked, topkWeights }),
          )
          const fromContiguous = await copyToHost(
            unpermuteAndReduce(contiguous.rows, { ...ours, ...contiguous, topkWeights }),
          )
          expect(firstDifference(rowBytes(fromMasked), rowBytes(fromContiguous))).toBeUndefined()
          const expected = reference.unpermuteAndReduce(matrix(await flat(masked.rows).readNumbers(), 24), {
            ...plain,
            ...{ topkWeights: matrix(weights, slots[1]), hidden: 24 },
            inversePermutation: matrix(await masked.inversePermutation.readNumbers(), slots[1]),
          })
          const bits =
            dtype === 'f32' ? expected.flat().map(f32ToBits) : Array.from(encode(dtype, expected.flat()), Number)
          const { buffer, byteOffset, length, BYTES_PER_ELEMENT: size } = fromMasked.data
          const stored =
            size === 4 ? new Uint32Array(buffer, byteOffset, length) : new Uint16Array(buffer, byteOffset, length)
          expect([...stored]).toEqual(bits)
        },
      ),
    )
  })

  test('says where rows go: expert and position', async () => {
    const x = Tensor.from([1, 2, 3], [3, 1], 'u8')
    const topkIdx = Tensor.from([1, 0, 1, -1, 1, 1], [3, 2], 'i32')
    const out = await onHost(permuteMasked(x, { topkIdx, numLocalExperts: 3, maxTokens: 5 }))
    expect([...out.rows.data]).toEqual([1, 0, 0, 0, 0, 1, 2, 3, 3, 0, 0, 0, 0, 0, 0])
    expect([...out.maskedM.data]).toEqual([1, 4, 0])
    expect([...out.inversePermutation.data]).toEqual([5, 0, 6, -1, 7, 8])
  })

  test('fails with the true count of the fullest expert, and writes nothing', async () => {
    const rows = Tensor.from(Array<number>(8).fill(9), [2, 2, 2], 'u8')
    const topkIdx = Tensor.from([0, 1, 0, 1, 1, 1, -1, 0], [4, 2], 'i32')
    permuteMasked(Tensor.zeros([4, 2], 'u8'), { topkIdx, numLocalExperts: 2, maxTokens: 2, out: { rows } })
    const message = expect.stringContaining('every expert has 2 rows, but 4 are needed for local expert 1')
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', message })
    expect([...(await rows.read())]).toEqual(Array<number>(8).fill(9))
  })

  test('replays in a graph, and zeroes what an earlier replay left', async () => {
    const topkIdx = Tensor.from([0, 0, 1], [3, 1], 'i32')
    const x = Tensor.from([1, 2, 3], [3, 1], 'u8')
    const memory = {
      rows: Tensor.zeros([2, 3, 1], 'u8'),
      maskedM: Tensor.zeros([2], 'i32'),
      inversePermutation: Tensor.zeros([3, 1], 'i32'),
    }
    const stream = device.createStream()
    const options = { topkIdx, numLocalExperts: 2, maxTokens: 3, zeroPadding: true }
    const graph = Graph.capture(stream, () => permuteMasked(x, { ...options, out: memory, stream }))
    graph.launch(stream)
    expect([...(await memory.rows.read({ stream }))]).toEqual([1, 2, 0, 3, 0, 0])
    copyTensor(Tensor.from([1, -1, 1], [3, 1], 'i32'), topkIdx, { stream })
    graph.launch(stream)
    await stream.close()
    const out = await onHost(memory)
    expect([...out.rows.data]).toEqual([0, 0, 0, 1, 3, 0])
    expect([...out.maskedM.data]).toEqual([0, 2])
    expect([...out.inversePermutation.data]).toEqual([3, -1, 4])
  })

  test('takes no tokens', async () => {
    const out = await onHost(
      permuteMasked(Tensor.zeros([0, 8], 'bf16'), {
        ...{ topkIdx: Tensor.zeros([0, 2], 'i64'), numLocalExperts: 3, maxTokens: 4 },
      }),
    )
    expect(out.rows.shape).toEqual([3, 4, 8])
    expect([...out.maskedM.data]).toEqual([0, 0, 0])
  })

  const map = Tensor.zeros([2], 'i32')
  const base: PermuteMaskedOptions = { topkIdx: Tensor.zeros([2, 2], 'i64'), numLocalExperts: 2, maxTokens: 4 }
  test.each<[string, Partial<PermuteMaskedOptions>]>([
    ['no room', { maxTokens: 0 }],
    ['more rows than can be named', { maxTokens: 2 ** 30 }],
    ['rows of another shape', { out: { rows: Tensor.zeros([2, 4, 5], 'bf16') } }],
    ['counts over the map', { expertMap: map, out: { maskedM: map } }],
    ['counts of another shape', { out: { maskedM: Tensor.zeros([3], 'i32') } }],
    ['scales of another shape', { scales: Tensor.zeros([2, 1], 'f32'), out: { scales: Tensor.zeros([8, 1], 'f32') } }],
    ['another zeroPadding', { zeroPadding: 'yes' as unknown as boolean }],
  ])('refuses %s', (_, options) => {
    expect(() => permuteMasked(Tensor.zeros([2, 4], 'bf16'), { ...base, ...options })).toThrow(refused)
  })

  test.each([
    [
      'an id that is too large',
      { topkIdx: Tensor.from([0, 1, 2, -1], [2, 2], 'i64') },
      'received 2 for token 1, slot 0',
    ],
    ['a map entry that is too large', { expertMap: Tensor.from([3], [1], 'i32') }, 'received 3 for expert 0'],
  ])('refuses %s at the next await', async (_, options, message) => {
    permuteMasked(Tensor.zeros([2, 4], 'bf16'), { ...base, ...options })
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(message) })
  })
})

describe('unpermuteMaskedAndReduce', () => {
  test('reads rows that lie evenly apart, and refuses others', async () => {
    const memory = Tensor.from(
      Array.from({ length: 48 }, (_, i) => i),
      [48],
      'f32',
    ).memory
    const view = (strides: number[]): Tensor => new Tensor({ memory, dtype: 'f32', shape: [2, 3, 2], strides })
    const options = {
      topkIdx: Tensor.zeros([2, 1], 'i32'),
      topkWeights: ones([2, 1]),
      inversePermutation: Tensor.from([4, 0], [2, 1], 'i32'),
    }
    const out = await onHost(unpermuteMaskedAndReduce(view([15, 5, 1]), options))
    expect([...out.toNumbers()]).toEqual([20, 21, 0, 1])
    expect(() => unpermuteMaskedAndReduce(view([16, 5, 1]), options)).toThrow(refused)
    expect(() => unpermuteMaskedAndReduce(view([15, 5, 2]), options)).toThrow(refused)
    expect(() => unpermuteMaskedAndReduce(Tensor.zeros([6, 2], 'f32'), options)).toThrow(refused)
  })
})

describe('expectedM', () => {
  test.each([
    [{ numTokens: 4096, topk: 8, numExperts: 256, maxTokens: 1024 }, 128],
    [{ numTokens: 129, topk: 8, numExperts: 64, maxTokens: 1024 }, 16],
    [{ numTokens: 136, topk: 8, numExperts: 64, maxTokens: 1024 }, 32],
    [{ numTokens: 0, topk: 8, numExperts: 64, maxTokens: 1024 }, 16],
    [{ numTokens: 0, topk: 8, numExperts: 64, maxTokens: 8 }, 8],
    [{ numTokens: 9999, topk: 8, numExperts: 64, maxTokens: 100 }, 100],
    [{ topk: 8, numExperts: 64, maxTokens: 77 }, 77],
  ])('of %j is %i', (options, rows) => {
    expect(expectedM(options)).toBe(rows)
  })

  test.each([{ numTokens: -1 }, { topk: 1.5 }, { numExperts: 0 }, { maxTokens: 0 }])('refuses %j', (options) => {
    expect(() => expectedM({ numTokens: 1, topk: 1, numExperts: 1, maxTokens: 1, ...options })).toThrow(refused)
  })
})
