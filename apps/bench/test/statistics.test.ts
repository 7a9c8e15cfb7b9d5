import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { percentile, slowestRank } from '../src/measure/statistics.js'

describe('percentile', () => {
  it('is a value of nearest rank, whatever the order', () => {
    const values = [5, 1, 4, 2, 3]
    expect(percentile(values, 50)).toBe(3)
    expect(percentile(values, 0)).toBe(1)
    expect(percentile(values, 99)).toBe(5)
    expect(percentile([1, 2], 50)).toBe(1)
    expect(percentile([7], 99)).toBe(7)
    expect(percentile([], 50)).toBeNaN()
    expect(values).toEqual([5, 1, 4, 2, 3])
  })

  it('is the smallest value that enough values do not exceed', () => {
    const cases = fc.record({
      values: fc.array(fc.integer({ min: 0, max: 50 }), { minLength: 1, maxLength: 40 }),
      percent: fc.integer({ min: 1, max: 100 }),
    })
    fc.assert(
      fc.property(cases, ({ values, percent }) => {
        const reaches = (limit: number): boolean =>
          values.filter((value) => value <= limit).length * 100 >= percent * values.length
        const expected = Math.min(...values.filter(reaches))
        expect(percentile(values, percent)).toBe(expected)
      }),
    )
  })
})

describe('slowestRank', () => {
  it('takes the slowest rank of every iteration, which need not be the same one', () => {
    expect(
      slowestRank([
        [1, 20, 3],
        [10, 2, 4],
        [5, 5, 5],
      ]),
    ).toEqual([10, 20, 5])
    expect(slowestRank([[1, 2]])).toEqual([1, 2])
    expect(slowestRank([])).toEqual([])
  })
})
