import { copyTensor, getDefaultDevice, Graph, Plan, type Stream, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { reference, siluMul, siluMulQuantize } from '../src/index.js'
import { bytesOf, memoryOf, numbersOf, sameBytes } from './support.js'

describe('of matrices with counts', () => {
  test('of many experts, one full and one empty, over 18 binades: what each gives alone', async () => {
    for (const [batch, rows, hidden] of [
      [8, 16, 384],
      [17, 31, 768],
      [32, 64, 256],
      [16, 512, 1024], // looked up in a table on a GPU
      [512, 3, 128],
      // more than blocks of a GPU know the counts of ahead
      [513, 5, 128],
      [513, 40, 128],
    ] as const) {
      const stored = Uint16Array.from({ length: batch * rows * 2 * hidden }, (_, i) => {
        const random = Math.imul(i + 1, 2654435761) >>> 8
        return ((random & 1) << 15) | ((118 + (random % 18)) << 7) | ((random >> 9) & 0x7f)
      })
      const x = Tensor.copyOf(stored, [batch, rows, 2 * hidden], 'bf16')
      const used = Array.from({ length: batch }, (_, e) => (e === 0 ? rows : e === 1 ? 0 : (e * 7) % rows))
      const counts = Tensor.from(used, [batch], 'i32')
      for (const scaleFormat of ['f32', 'ue8m0-packed'] as const) {
        const options = { numerics: 'vllm-masked', scaleFormat } as const
        const all = siluMulQuantize(x, { ...options, counts, scaleLayout: 'row-major' })
        const alone = siluMulQuantize(x.reshape([batch * rows, 2 * hidden]), { ...options, scaleLayout: 'row-major' })
        for (const [part, whole] of [
          [all.values, alone.values],
          [all.scales, alone.scales],
          [siluMul(x, { counts }), siluMul(x.reshape([batch * rows, 2 * hidden]))],
        ] as const) {
          const expected = (await bytesOf(whole)).slice()
          const rowBytes = expected.length / (batch * rows)
          used.forEach((count, e) => expected.fill(0, (e * rows + count) * rowBytes, (e + 1) * rows * rowBytes))
          expect(sameBytes(await bytesOf(part), expected)).toBe(true)
        }
      }
    }
  })

  test('of masked matrices, only rows in use are read and written', async () => {
    const [batch, rows, hidden] = [4, 6, 40]
    const stored = Uint16Array.from({ length: batch * rows * 2 * hidden }, (_, i) => 0x3f00 + ((i * 7) % 256))
    const x = Tensor.copyOf(stored, [batch, rows, 2 * hidden], 'bf16')
    const counts = Tensor.from([6, 0, 2, 99], [batch], 'i32')
    const options = { counts, groupSize: 16, numerics: 'vllm-masked', scaleLayout: 'column-major-tma' } as const
    const { values, scales } = siluMulQuantize(x, options)
    const products = siluMul(x, { counts })
    expect([values.shape, scales.shape, scales.strides]).toEqual([
      [4, 6, 40],
      [4, 6, 3],
      [24, 1, 8],
    ])
    const memory = new Float32Array((await memoryOf(scales)).buffer)
    const codes = await bytesOf(values)
    const productBits = (await products.read()) as Uint16Array
    ;[6, 0, 2, 6].forEach((count, e) => {
      const numbers = numbersOf('bf16', stored.subarray(e * rows * 2 * hidden, (e * rows + count) * 2 * hidden))
      const quantized = reference.siluMulQuantize(numbers, {
        hidden,
        dtype: 'bf16',
        groupSize: 16,
        numerics: 'vllm-masked',
      })
      const unused = (rows - count) * hidden
      expect([...codes.subarray(e * rows * hidden, (e + 1) * rows * hidden)]).toEqual([
        ...quantized.values,
        ...new Uint8Array(unused),
      ])
      expect([...productBits.subarray(e * rows * hidden, (e + 1) * rows * hidden)]).toEqual([
        ...(reference.siluMul(numbers, { hidden, dtype: 'bf16' }) as Uint16Array),
        ...new Uint16Array(unused),
      ])
      for (let g = 0; g < 3; g++) {
        for (let m = 0; m < 8; m++) {
          expect(memory[e * 24 + g * 8 + m]).toBe(m < count ? quantized.scales[m * 3 + g] : 0)
        }
      }
    })
  })

  test.each<[string, (stream: Stream, body: () => void) => Graph | Plan]>([
    ['a graph', (stream, body) => Graph.capture(stream, body)],
    ['a plan', (stream, body) => Plan.of(stream, body)],
  ])('rows that are in use no more are zero again in every replay of %s', async (_, record) => {
    const device = getDefaultDevice()
    await using stream = device.createStream()
    const x = Tensor.from(Array(2 * 3 * 8).fill(1), [2, 3, 8], 'bf16')
    const counts = Tensor.zeros([2], 'i32')
    const layouts = ['row-major', 'column-major-tma'] as const
    const call = () => ({
      quantized: layouts.map((scaleLayout) => siluMulQuantize(x, { counts, stream, scaleLayout })),
      product: siluMul(x, { counts, stream }),
    })
    const bytes = async ({ quantized, product }: ReturnType<typeof call>): Promise<number[][]> => {
      await stream.synchronize()
      const results = quantized.flatMap(({ values, scales }) => [memoryOf(values), memoryOf(scales)])
      return (await Promise.all([...results, memoryOf(product)])).map((part) => [...part])
    }
    let results!: ReturnType<typeof call>
    using recorded = record(stream, () => void (results = call()))
    for (const used of [
      [3, 1],
      [1, 2],
      [0, 0],
    ]) {
      copyTensor(Tensor.from(used, [2], 'i32'), counts, { stream })
      recorded.launch(stream)
      const replayed = await bytes(results)
      expect(replayed).toEqual(await bytes(call()))
      expect(replayed.some((part) => part.some((byte) => byte !== 0))).toBe(used.some((count) => count > 0))
    }
  })

  test('leaves what `out` held in rows that are not in use', async () => {
    const x = Tensor.from(Array(2 * 3 * 8).fill(1), [2, 3, 8], 'bf16')
    const out = {
      values: Tensor.copyOf(new Uint8Array(24).fill(0x55), [2, 3, 4], 'fp8e4m3'),
      scales: Tensor.from(Array(6).fill(-1), [2, 3, 1], 'f32'),
    }
    siluMulQuantize(x, { counts: Tensor.from([1, 2], [2], 'i32'), out })
    expect([...(await out.scales.readNumbers())].map((scale) => scale === -1)).toEqual([
      false,
      true,
      true,
      false,
      false,
      true,
    ])
    expect([...(await bytesOf(out.values))].map((code) => code === 0x55)).toEqual(
      [0, 1, 1, 0, 0, 1].flatMap((unused) => Array(4).fill(unused === 1)),
    )
  })
})
