import { describe, expect, it } from 'vitest'
import { maxRelError } from '../../src/check/max-rel-error.js'

const error = (y: number[], reference: number[]) => maxRelError(Float32Array.from(y), Float32Array.from(reference))

describe('maxRelError', () => {
  it('is the largest difference over the largest reference value', () => {
    expect(error([1, -4, 2], [1, -4, 2])).toBe(0)
    expect(error([1, -3, 2], [1, -4, 2])).toBe(0.25)
    expect(error([1.5, -4, 2], [1, -4, 2.25])).toBe(0.125)
  })

  it('is 1 for an output of zeros', () => expect(error([0, 0], [3, -5])).toBe(1))

  it('accepts only zeros where the reference is zero', () => {
    expect(error([0, -0], [0, 0])).toBe(0)
    expect(error([0, 1e-45], [0, 0])).toBe(Infinity)
    expect(error([], [])).toBe(0)
  })

  it.each([NaN, Infinity, -Infinity])('is infinite for %d on either side, and on both', (value) => {
    expect(error([value, 1], [1, 1])).toBe(Infinity)
    expect(error([1, 1], [1, value])).toBe(Infinity)
    expect(error([value, 1], [value, 1])).toBe(Infinity)
  })

  it('refuses lengths that differ', () => {
    expect(() => error([1], [1, 2])).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })
})
