import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { referenceExpert } from '../src/index.js'

const silu = (value: number) => value / (1 + Math.exp(-value))

describe('referenceExpert', () => {
  it('computes a case that fits on paper', () => {
    // gate = x . [1, 0] = 2, up = x . [0, 1] = 3, w2 sends the product to both columns, doubled in the second.
    const y = referenceExpert({
      hidden: 2,
      intermediate: 1,
      x: Float32Array.of(2, 3),
      w13: Float32Array.of(1, 0, 0, 1),
      w2: Float32Array.of(1, 2),
    })
    expect(y[0]).toBeCloseTo(silu(2) * 3, 6)
    expect(y[1]).toBeCloseTo(silu(2) * 6, 6)
  })

  it('rounds to f32 after every operation', () => {
    // In f64 the sum 2^24 + 1 - 2^24 is 1; in f32 the one is lost, so the gate is 0 and so is the output.
    const y = referenceExpert({
      hidden: 3,
      intermediate: 1,
      x: Float32Array.of(2 ** 24, 1, -(2 ** 24)),
      w13: Float32Array.of(1, 1, 1, 1, 0, 0),
      w2: Float32Array.of(1, 1, 1),
    })
    expect([...y]).toEqual([0, 0, 0])
  })

  it('gives nothing for no rows', () => {
    const weights = { w13: new Float32Array(16), w2: new Float32Array(8) }
    expect(referenceExpert({ hidden: 4, intermediate: 2, x: new Float32Array(0), ...weights })).toHaveLength(0)
  })

  it.each([
    ['hidden', { hidden: 0 }],
    ['intermediate', { intermediate: 1.5 }],
    ['x', { x: new Float32Array(5) }],
    ['w13', { w13: new Float32Array(15) }],
    ['w2', { w2: new Float32Array(9) }],
  ])('refuses a wrong %s by name', (argument, wrong) => {
    const right = {
      hidden: 4,
      intermediate: 2,
      x: new Float32Array(4),
      w13: new Float32Array(16),
      w2: new Float32Array(8),
    }
    const error = caught(() => referenceExpert({ ...right, ...wrong }))
    expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_ARGUMENT') && error.details.argument).toBe(argument)
  })
})

function caught(action: () => unknown): unknown {
  try {
    action()
  } catch (error) {
    return error
  }
  return undefined
}
