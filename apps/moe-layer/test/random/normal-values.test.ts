import { bf16ToF32Array } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { fillFromTable, normalTable, normalTableBf16 } from '../../src/random/normal-values.js'
import { randomStream, wordAt } from '../../src/random/random-stream.js'

describe('randomStream', () => {
  it('differs in every word for another seed, also one beyond 32 bits, and for another label', () => {
    const words = [
      randomStream(1, 'a'),
      randomStream(2, 'a'),
      randomStream(1 + 2 ** 32, 'a'),
      randomStream(-1, 'a'),
      randomStream(1, 'b'),
      randomStream(1, 'aa'),
      randomStream(1, ''),
    ].flatMap((stream) => Array.from({ length: 1000 }, (_, index) => wordAt(stream, index)))
    // Among 7000 draws of 32 bits a collision or two can happen; equal streams would give a thousand.
    expect(new Set(words).size).toBeGreaterThan(6990)
  })

  it('sets every bit half of the time', () => {
    const stream = randomStream(7, 'bits')
    const draws = 20_000
    const counts = new Array<number>(32).fill(0)
    for (let index = 0; index < draws; index++) {
      const word = wordAt(stream, index)
      for (let bit = 0; bit < 32; bit++) counts[bit]! += (word >>> bit) & 1
    }
    for (const count of counts) expect(Math.abs(count / draws - 0.5)).toBeLessThan(0.02)
  })
})

describe('normal values', () => {
  it('come from a table whose quantiles are those of the normal distribution', () => {
    const table = normalTable(2)
    const quantile = (p: number) => table[Math.floor(p * table.length)]! / 2
    expect(quantile(0.5)).toBeCloseTo(0, 4)
    expect(quantile(0.8413447)).toBeCloseTo(1, 3)
    expect(quantile(0.9772499)).toBeCloseTo(2, 3)
    expect(quantile(0.0013499)).toBeCloseTo(-3, 2)
    expect(table.every((value, i) => i === 0 || value >= table[i - 1]!)).toBe(true)
    expect(table.every((value, i) => value === -table[table.length - 1 - i]!)).toBe(true)
  })

  it('have the mean, the deviation and the independence of neighbours that they should', () => {
    const values = new Float32Array(200_001)
    fillFromTable(values, { table: normalTable(3), stream: randomStream(11, 'moments'), first: 0 })
    const mean = (f: (value: number, i: number) => number) =>
      values.reduce((sum, value, i) => sum + f(value, i), 0) / values.length
    expect(Math.abs(mean((value) => value))).toBeLessThan(0.03)
    expect(Math.sqrt(mean((value) => value * value))).toBeCloseTo(3, 1)
    expect(Math.abs(mean((value, i) => value * (values[i + 1] ?? 0)))).toBeLessThan(0.1)
  })

  it('are the same in pieces of any even sizes as in one go', () => {
    const table = normalTableBf16(1)
    const stream = randomStream(3, 'pieces')
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 50 }), { maxLength: 8 }),
        fc.integer({ min: 0, max: 9 }),
        (halves, tail) => {
          const length = halves.reduce((sum, half) => sum + 2 * half, tail)
          const whole = new Uint16Array(length)
          fillFromTable(whole, { table, stream, first: 0 })
          const pieces = new Uint16Array(length)
          let first = 0
          for (const size of [...halves.map((half) => 2 * half), tail]) {
            fillFromTable(pieces.subarray(first, first + size), { table, stream, first })
            first += size
          }
          expect(pieces).toEqual(whole)
        },
      ),
    )
  })

  it('are the rounded f32 values in bf16', () => {
    const f32 = new Float32Array(1000)
    const bf16 = new Uint16Array(1000)
    const stream = randomStream(5, 'dtype')
    fillFromTable(f32, { table: normalTable(1), stream, first: 0 })
    fillFromTable(bf16, { table: normalTableBf16(1), stream, first: 0 })
    for (const [i, value] of bf16ToF32Array(bf16).entries()) {
      expect(Math.abs(value - f32[i]!)).toBeLessThanOrEqual(Math.abs(f32[i]!) / 256)
    }
  })
})
