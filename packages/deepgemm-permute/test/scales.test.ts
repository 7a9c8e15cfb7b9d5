import { type DType, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { computeAlignedM, permute, permuteMasked, reference } from '../src/index.js'
import { restride } from './restride.js'
import {
  asWords,
  device,
  elementRows,
  firstDifference,
  onHost,
  optionsOf,
  randomBits,
  randomNumbers,
  routings,
  rowBytes,
} from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })

/** Row and column strides of the last two dimensions. */
function lastStrides(tensor: Tensor): number[] {
  return tensor.strides.slice(-2)
}

describe('scales', () => {
  const shapes = fc.record({
    kind: fc.constantFrom<[DType, boolean][]>(
      ['f32', false],
      ['i32', false],
      ['u8', false],
      ['e8m0', false],
      ['u8', true],
      ['e8m0', true],
    ),
    groups: fc.constantFrom(0, 1, 3, 4, 5, 16, 56),
    strides: fc.constantFrom('packed' as const, 'wide' as const, 'column' as const),
    scaleLayout: fc.constantFrom('row' as const, 'column' as const),
    alignment: fc.constantFrom(1, 3, 16, 224),
  })
  const prepare = (
    routing: { topkIdx: number[][] },
    {
      kind: [dtype, packScales],
      groups,
      strides,
    }: { kind: [DType, boolean]; groups: number; strides: 'packed' | 'wide' | 'column' },
  ): { scales: Tensor; expectedRows: number[][]; empty: number[] } => {
    const scales = randomBits([routing.topkIdx.length, groups], dtype, 5)
    const rows = elementRows(asWords(scales))
    const expectedRows = packScales ? rows.map((row) => [...reference.packUe8m0(row)]) : rows
    const columns = packScales ? Math.ceil(groups / 4) : groups
    return { scales: restride(scales, strides), expectedRows, empty: Array<number>(columns).fill(0) }
  }

  test('travel with their rows in either layout, packed or not, from any strides', async () => {
    await fc.assert(
      fc.asyncProperty(routings, shapes, async (routing, shape) => {
        const { ours, reference: plain } = optionsOf(routing, 'i32')
        const { scales, expectedRows, empty } = prepare(routing, shape)
        const { scaleLayout, alignment } = shape
        const numTokens = routing.topkIdx.length
        const x = randomBits([numTokens, 1], 'u8')
        const actual = await onHost(permute(x, { ...ours, scales, packScales: shape.kind[1], scaleLayout, alignment }))
        const capacity = actual.rows.shape[0]!
        const expected = reference.permute(rowBytes(x), { ...plain, alignment, capacity, scales: expectedRows })
        expect(
          firstDifference(
            elementRows(asWords(actual.scales!)),
            expected.scales.map((row) => row ?? empty),
          ),
        ).toBeUndefined()
        const rowsOf16Bytes = shape.kind[1] || shape.kind[0] === 'f32' || shape.kind[0] === 'i32' ? 4 : 16
        const columnStride = Math.ceil(capacity / rowsOf16Bytes) * rowsOf16Bytes
        expect(lastStrides(actual.scales!)).toEqual(scaleLayout === 'row' ? [empty.length, 1] : [1, columnStride])
      }),
    )
  })

  test('travel into the masked layout likewise', async () => {
    await fc.assert(
      fc.asyncProperty(routings, shapes, fc.integer({ min: 0, max: 70 }), async (routing, shape, spare) => {
        const { ours, reference: plain } = optionsOf(routing, 'i64')
        const { scales, expectedRows, empty } = prepare(routing, shape)
        const maxTokens = Math.max(1, ...reference.countExpertNumTokens(routing.topkIdx, plain)) + spare
        const x = randomBits([routing.topkIdx.length, 1], 'u8')
        const { scaleLayout } = shape
        const actual = await onHost(
          permuteMasked(x, { ...ours, maxTokens, scales, packScales: shape.kind[1], scaleLayout }),
        )
        const expected = reference.permuteMasked(rowBytes(x), { ...plain, maxTokens, scales: expectedRows })
        expect(actual.scales!.shape).toEqual([routing.numLocalExperts, maxTokens, empty.length])
        expect(
          firstDifference(
            elementRows(asWords(actual.scales!)),
            expected.scales.flat().map((row) => row ?? empty),
          ),
        ).toBeUndefined()
      }),
    )
  })

  test.each([
    [4, 8, 1, 128, 128],
    [4, 16, 2, 256, 128],
    [8, 32, 1, 512, 32],
    [4, 16, 1, 256, 32],
  ])(
    'are packed for %i experts, %i tokens, top-%i, hidden %i, groups of %i',
    async (experts, tokens, topk, hidden, group) => {
      const ids = Array.from(randomNumbers(tokens * topk, hidden), (value) => Math.floor(((value + 1) / 2) * experts))
      const scales = randomBits([tokens, hidden / group], 'u8', 9)
      const x = randomBits([tokens, hidden], 'fp8e4m3')
      const topkIdx = Tensor.from(ids, [tokens, topk], 'i64')
      const out = await onHost(permute(x, { scales, packScales: true, topkIdx, numLocalExperts: experts }))
      expect(out.scales!.shape).toEqual([out.rows.shape[0], Math.ceil(hidden / group / 4)])
      const words = elementRows(out.scales!)
      const rows = rowBytes(out.rows)
      const sources = rowBytes(x)
      ids.forEach((id, slot) => {
        const position = Number(out.inversePermutation.data[slot])
        const token = Math.floor(slot / topk)
        expect(out.expertIds.data[position]).toBe(id)
        expect(rows[position]).toEqual(sources[token])
        const bytes = Buffer.from(Int32Array.from(words[position]!).buffer)
        expect([...bytes.subarray(0, hidden / group)]).toEqual([...rowBytes(scales)[token]!])
        expect([...bytes.subarray(hidden / group)].every((byte) => byte === 0)).toBe(true)
      })
    },
  )

  test('pack little end first, and missing groups are 0', async () => {
    const scales = Tensor.from([0x11, 0x22, 0x33, 0x44, 0xff, 0x80], [1, 6], 'u8')
    const topkIdx = Tensor.zeros([1, 1], 'i32')
    const out = await onHost(
      permute(Tensor.zeros([1, 4], 'u8'), {
        scales,
        packScales: true,
        topkIdx,
        numLocalExperts: 1,
        alignment: 1,
      }),
    )
    expect([...out.scales!.data]).toEqual([0x44332211, 0x80ff])
    expect([...reference.packUe8m0([0x11, 0x22, 0x33, 0x44, 0xff, 0x80])]).toEqual([0x44332211, 0x80ff])
    expect([...reference.packUe8m0([0, 0, 0, 0x80])]).toEqual([-(2 ** 31)])
  })

  test.each([false, true])(
    'leave padding as it was in column-major memory, unless zeroPadding (%s)',
    async (zeroPadding) => {
      const whole = Tensor.from(Array<number>(20).fill(9), [20], 'f32')
      const { memory } = whole
      const out = new Tensor({ memory, dtype: 'f32', shape: [5, 2], strides: [1, 8], byteOffset: 8 })
      const options = { topkIdx: Tensor.from([1, 0, 1], [3, 1], 'i32'), numLocalExperts: 2, alignment: 2 }
      permute(Tensor.zeros([3, 1], 'u8'), {
        ...options,
        ...{ scales: Tensor.from([1, 2, 3, 4, 5, 6], [3, 2], 'f32'), zeroPadding, out: { scales: out } },
      })
      const p = zeroPadding ? 0 : 9
      const column = (a: number, b: number, c: number): number[] => [a, p, b, c, p]
      const expected = [9, 9, ...column(3, 1, 5), 9, 9, 9, ...column(4, 2, 6), 9, 9, 9, 9, 9]
      expect([...(await whole.read())]).toEqual(expected)
    },
  )

  test('use more than one block and thread alike', async () => {
    const [tokens, topk, experts, groups] = [700, 4, 9, 7]
    const ids = Array.from(randomNumbers(tokens * topk, 8), (value) => Math.floor(((value + 1) / 2) * experts))
    const scales = randomBits([tokens, groups], 'u8', 4)
    const results: number[][][] = []
    for (const threads of [1, 2, 5]) {
      const stream = device.createStream({ threads })
      const out = permute(Tensor.zeros([tokens, 1], 'u8'), {
        ...{ scales, packScales: true, scaleLayout: 'column', stream, alignment: 16 },
        ...{ topkIdx: Tensor.from(ids, [tokens, topk], 'i32'), numLocalExperts: experts },
      })
      await stream.close()
      results.push(elementRows((await onHost(out)).scales!))
    }
    const size = { numTokens: tokens, topk, numLocalExperts: experts, alignment: 16 }
    const topkIdx = Array.from({ length: tokens }, (_, token) => ids.slice(token * topk, (token + 1) * topk))
    const expected = reference.permute(Array<undefined>(tokens).fill(undefined), {
      ...{ topkIdx, numLocalExperts: experts, alignment: 16, capacity: computeAlignedM(size) },
      scales: elementRows(scales).map((row) => [...reference.packUe8m0(row)]),
    })
    const words = expected.scales.map((row) => row ?? [0, 0])
    for (const result of results) expect(firstDifference(result, words)).toBeUndefined()
  })

  test.each([
    ['overlap', [1, 1]],
    ['are one place', [0, 1]],
    ['reach into each other', [2, 3]],
  ])('refuse memory whose elements %s', (_, strides) => {
    const { memory } = Tensor.zeros([64], 'f32')
    const scales = new Tensor({ memory, dtype: 'f32', shape: [4, 3], strides })
    const options = { scales: Tensor.zeros([1, 3], 'f32'), topkIdx: Tensor.zeros([1, 1], 'i32'), numLocalExperts: 1 }
    expect(() => permute(Tensor.zeros([1, 4], 'u8'), { ...options, alignment: 1, out: { scales } })).toThrow(refused)
  })
})
