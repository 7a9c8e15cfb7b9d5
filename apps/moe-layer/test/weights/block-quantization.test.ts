import { decode, f32ToFp8E4m3 } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { dequantizeBlocks, quantizeBlocks, scaleShape } from '../../src/weights/block-quantization.js'

const sizes = fc.record({ rows: fc.integer({ min: 1, max: 300 }), columns: fc.integer({ min: 1, max: 300 }) })
const hostile = [0, -0, 1e-45, -1e-38, 1e-4, 448, 672, -1e30, 3.4e38, 1, 0.1]

/** Values of a matrix: a few hostile ones among others, all of them in turns. */
function matrix(length: number, seed: number): Float32Array {
  return Float32Array.from({ length }, (_, i) =>
    (i + seed) % 7 === 0
      ? hostile[(i * 31 + seed) % hostile.length]!
      : Math.sin(i * 12.9898 + seed) * 2 ** ((i % 40) - 30),
  )
}

describe('quantizeBlocks', () => {
  it('follows its definition for each element', () => {
    fc.assert(
      fc.property(sizes, fc.nat(1000), ({ rows, columns }, seed) => {
        const values = matrix(rows * columns, seed)
        const { bits, scales } = quantizeBlocks(values, { rows, columns })
        const [blockRows, blockColumns] = scaleShape({ rows, columns })
        expect(scales).toHaveLength(blockRows * blockColumns)
        const expectedScales = new Float32Array(scales.length).fill(1e-4)
        const blocks = Array.from(
          values,
          (_, i) => Math.floor(i / columns / 128) * blockColumns + Math.floor((i % columns) / 128),
        )
        for (const [i, block] of blocks.entries())
          expectedScales[block] = Math.max(expectedScales[block]!, Math.abs(values[i]!))
        expect(scales).toEqual(expectedScales.map((amax) => amax / 448))
        const expected = Uint8Array.from(values, (value, i) =>
          f32ToFp8E4m3(Math.fround(value * Math.fround(1 / scales[blocks[i]!]!))),
        )
        expect(Buffer.compare(bits, expected)).toBe(0)
      }),
      { numRuns: 25 },
    )
  })

  it('rounds every kind of tie as the plain conversion does', () => {
    // One block whose scale is exactly 1, so that the values pass unchanged.
    const values = Float32Array.from({ length: 128 * 128 }, (_, i) => {
      const step = Math.fround(2 ** ((i % 20) - 11) * (1 + (i % 257) / 256))
      return (
        (i % 3 === 0 ? step : Math.fround(step * (i % 3 === 1 ? 1 + 2 ** -23 : 1 - 2 ** -24))) * (i % 2 === 0 ? 1 : -1)
      )
    }).map((value) => Math.max(-448, Math.min(448, value)))
    values[0] = 448
    const { bits, scales } = quantizeBlocks(values, { rows: 128, columns: 128 })
    expect([...scales]).toEqual([1])
    expect(Buffer.compare(bits, Uint8Array.from(values, f32ToFp8E4m3))).toBe(0)
  })

  it('gives zeros a scale that is not zero', () => {
    const { bits, scales } = quantizeBlocks(new Float32Array(4), { rows: 2, columns: 2 })
    expect([...bits]).toEqual([0, 0, 0, 0])
    expect(scales[0]).toBeCloseTo(1e-4 / 448, 12)
  })
})

describe('dequantizeBlocks', () => {
  it('multiplies each element by the scale of its block', () => {
    fc.assert(
      fc.property(sizes, fc.nat(1000), ({ rows, columns }, seed) => {
        const bits = Uint8Array.from({ length: rows * columns }, (_, i) => ((i * 37 + seed) % 255) & ~(i % 2))
        const [blockRows, blockColumns] = scaleShape({ rows, columns })
        const scales = matrix(blockRows * blockColumns, seed)
        const values = decode('fp8e4m3', bits)
        const expected = Float32Array.from(bits, (_, i) => {
          const row = Math.floor(i / columns)
          return values[i]! * scales[Math.floor(row / 128) * blockColumns + Math.floor((i % columns) / 128)]!
        })
        const result = dequantizeBlocks({ bits, scales }, { rows, columns })
        expect(Buffer.from(result.buffer).equals(Buffer.from(expected.buffer))).toBe(true)
      }),
      { numRuns: 25 },
    )
  })

  it('undoes quantizeBlocks to within half a step of e4m3', () => {
    const values = Float32Array.from({ length: 150 * 200 }, (_, i) => Math.sin(i))
    const back = dequantizeBlocks(quantizeBlocks(values, { rows: 150, columns: 200 }), { rows: 150, columns: 200 })
    const wrong = values.findIndex((value, i) => !(Math.abs(back[i]! - value) <= Math.abs(value) / 16 + 1e-5))
    expect(wrong).toBe(-1)
  })

  it.each([
    ['bits', { bits: new Uint8Array(5), scales: new Float32Array(1) }],
    ['scales', { bits: new Uint8Array(6), scales: new Float32Array(2) }],
  ])('refuses wrong %s', (argument, quantized) => {
    expect(() => dequantizeBlocks(quantized, { rows: 2, columns: 3 })).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }),
    )
    expect(() => quantizeBlocks(new Float32Array(5), { rows: 2, columns: 3 })).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'values' } }),
    )
  })
})
