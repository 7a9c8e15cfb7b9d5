import { Tensor } from '@moe-ep/core'
import { dequantizeMxfp8, dequantizeNvfp4, quantizeMxfp8, quantizeNvfp4 } from '@moe-ep/quant'
import { describe, expect, test } from 'vitest'
import { type LowLatencyDispatchOptions, reference } from '../src/index.js'
import { failureOf, type Rank, randomNumbers, toBf16, withWorld } from './world.js'

/** Rows of everything that bf16 has: a scale, a kind of number, and what is odd in a place of its own. */
function oddRows(count: number, hidden: number): number[][] {
  const random = randomNumbers(hidden)
  const scales = [1, 0, 1e-30, 1e-39, 3e38, 448, 1e-5]
  const odd = [NaN, Infinity, -Infinity, -0, 0, 3.3e38, 1e-40]
  return Array.from({ length: count }, (_, row) => {
    const values = toBf16(Array.from({ length: hidden }, () => (random() * 2 - 1) * scales[row % scales.length]!))
    if (row >= scales.length) values[Math.floor(random() * hidden)] = odd[row % odd.length]!
    return toBf16(values)
  })
}

const globalScale = (value: number): Tensor => Tensor.from([value], [1], 'f32')

describe.each(['mxfp8', 'nvfp4'] as const)('%s', (format) => {
  test.each([
    ['whole groups', 256, 'expert-major'],
    ['rows longer than what a warp takes', 2240, 'expert-major'],
    [
      'a last group that is short, or scales that are no whole words',
      2208 + (format === 'mxfp8' ? 16 : 0),
      'expert-major',
    ],
    ['rank-major', 2208, 'rank-major'],
  ] as const)('%s: any numbers, bit for bit', async (_, hidden, layout) => {
    const rows = oddRows(15, hidden)
    const xGlobalScale = format === 'nvfp4' ? 0.37 : undefined
    const expected = rows.map((row) =>
      reference.castRow(row, {
        format,
        ...(xGlobalScale !== undefined && { xGlobalScale: Math.fround(xGlobalScale) }),
      }),
    )
    const sizes = { hidden: 2240, maxTokensPerRank: 16, maxTopk: 1 }
    await withWorld(2, sizes, async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, stream, buffer }) => {
          // All rows of both ranks go to rank 1's only expert; the other rank receives none.
          const x = Tensor.from(rows.flat(), [rows.length, hidden], 'bf16')
          const topkIdx = Tensor.from(new Array<number>(rows.length).fill(1), [rows.length, 1], 'i32')
          const { packedRecvX, packedRecvXScales, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
            ...{ numExperts: 2, format, layout, stream },
            ...(xGlobalScale !== undefined && { xGlobalScale: globalScale(xGlobalScale) }),
          })
          await stream.synchronize()
          buffer.release(handle)
          if (rank === 0) return
          const [values, scales] = [await packedRecvX.read(), await packedRecvXScales!.read()]
          const [width, groups] = [expected[0]!.values.length, packedRecvXScales!.shape[2]!]
          expect(groups).toBe(Math.ceil(hidden / (format === 'mxfp8' ? 32 : 16)))
          for (let i = 0; i < 2 * rows.length; i++) {
            const source = Math.floor(i / rows.length)
            const at = layout === 'rank-major' ? source * sizes.maxTokensPerRank + (i % rows.length) : i
            const { values: codes, scales: ofRow } = expected[i % rows.length]!
            expect(values.slice(at * width, (at + 1) * width)).toEqual(codes)
            expect(scales.slice(at * groups, (at + 1) * groups)).toEqual(ofRow)
          }
        }),
      )
    })
  })

  test('arrives as what quant makes of the rows, which its inverse reads', async () => {
    const [tokens, hidden] = [3, 96]
    const random = randomNumbers(1)
    const x = Tensor.from(
      Array.from({ length: tokens * hidden }, () => random() - 0.5),
      [tokens, hidden],
      'bf16',
    )
    const xGlobalScale = globalScale(448 * 6 * 2)
    const options: Partial<LowLatencyDispatchOptions> = format === 'nvfp4' ? { format, xGlobalScale } : { format }
    await withWorld(1, { hidden, maxTokensPerRank: tokens, maxTopk: 1 }, async ([one]) => {
      const { stream, buffer } = one as Rank
      const topkIdx = Tensor.from([0, 0, 0], [tokens, 1], 'i64')
      const received = buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 1, stream, ...options })
      const values = received.packedRecvX.reshape([tokens, hidden])
      const scales = received.packedRecvXScales!.reshape([tokens, received.packedRecvXScales!.shape[2]!])
      const made = format === 'nvfp4' ? quantizeNvfp4(x, xGlobalScale, { stream }) : quantizeMxfp8(x, { stream })
      const back = (given: { readonly values: Tensor; readonly scales: Tensor }): Tensor =>
        format === 'nvfp4'
          ? dequantizeNvfp4(given.values, given.scales, xGlobalScale, { stream })
          : dequantizeMxfp8(given.values, given.scales, { stream })
      const [found, expected] = [back({ values, scales }), back(made)]
      await stream.synchronize()
      expect(await values.read()).toEqual(await made.values.read())
      expect(await scales.read()).toEqual(await made.scales.read())
      expect(await found.read()).toEqual(await expected.read())
      buffer.release(received.handle)
    })
  })
})

test('results go where the caller says, also at addresses that are no multiple of anything', async () => {
  const [tokens, hidden] = [2, 512]
  await withWorld(1, { hidden, maxTokensPerRank: tokens, maxTopk: 1 }, async ([one]) => {
    const { stream, buffer } = one as Rank
    const rows = oddRows(tokens, hidden)
    const memory = Tensor.zeros([1 + tokens * 16], 'u8')
    const packedRecvXScales = new Tensor({
      memory: memory.memory,
      dtype: 'e8m0',
      shape: [1, tokens, 16],
      byteOffset: 1,
    })
    const packedRecvX = Tensor.empty([1, tokens, hidden], 'fp8e4m3')
    const x = Tensor.from(rows.flat(), [tokens, hidden], 'bf16')
    const result = buffer.lowLatencyDispatch(x, Tensor.from([0, 0], [tokens, 1], 'i64'), {
      ...{ numExperts: 1, format: 'mxfp8', stream, out: { packedRecvX, packedRecvXScales } },
    })
    await stream.synchronize()
    expect(result.packedRecvXScales).toBe(packedRecvXScales)
    const expected = rows.flatMap((row) => Array.from(reference.castRow(row, { format: 'mxfp8' }).scales!))
    expect(Array.from(await memory.readNumbers())).toEqual([0, ...expected])
    buffer.release(result.handle)
  })
})

test('ranks whose formats or global scales differ fail alike, and the buffer works on', async () => {
  const [tokens, hidden] = [2, 32]
  await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: 1 }, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const x = Tensor.zeros([tokens, hidden], 'bf16')
        const topkIdx = Tensor.from([0, 2], [tokens, 1], 'i64')
        const outcome = async (options: Partial<LowLatencyDispatchOptions>): Promise<string> => {
          const { handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 3, stream, ...options })
          const error = await stream.synchronize().then(
            () => undefined,
            (cause: unknown) => cause,
          )
          buffer.release(handle)
          return error === undefined ? 'well' : `${(await failureOf(Promise.reject(error as Error))).message}`
        }
        expect(await outcome({ format: rank === 1 ? 'mxfp8' : 'fp8' })).toMatch(
          /format of rows is 1 on rank 0 and 3 on rank 1/,
        )
        const scaled = (value: number) => outcome({ format: 'nvfp4', xGlobalScale: globalScale(value) })
        expect(await scaled(rank === 2 ? 2 : 1)).toMatch(
          /xGlobalScale \(bits of the f32\) is 1065353216 on rank 0 and 1073741824 on rank 2/,
        )
        expect(await scaled(1)).toBe('well')
      }),
    )
  })
})
