import { bf16ToF32Array, f32ToBf16Array } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { makeActivations } from '../../src/routing/activations.js'
import { gateLogits } from '../../src/routing/gate-logits.js'

describe('gateLogits', () => {
  it('multiplies rows with the rows of the gate, for any hidden size', () => {
    const numbers = (length: number) =>
      fc.array(fc.integer({ min: -9, max: 9 }), { minLength: length, maxLength: length })
    const cases = fc
      .tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 11 }))
      .chain(([tokens, experts, hidden]) =>
        fc.record({ hidden: fc.constant(hidden), x: numbers(tokens * hidden), gate: numbers(experts * hidden) }),
      )
    fc.assert(
      fc.property(cases, ({ hidden, x, gate }) => {
        const expected: number[] = []
        for (let token = 0; token < x.length / hidden; token++) {
          for (let expert = 0; expert < gate.length / hidden; expert++) {
            let sum = 0
            for (let i = 0; i < hidden; i++) sum += x[token * hidden + i]! * gate[expert * hidden + i]!
            expected.push(sum)
          }
        }
        const logits = gateLogits({ x: Float32Array.from(x), gate: Float32Array.from(gate), hidden })
        expect([...logits].map((value) => value + 0)).toEqual(expected.map((value) => value + 0))
      }),
    )
  })

  it('refuses lengths that are not whole rows', () => {
    const argument = (name: string) =>
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: name } })
    const four = new Float32Array(4)
    expect(() => gateLogits({ x: new Float32Array(5), gate: four, hidden: 4 })).toThrow(argument('x'))
    expect(() => gateLogits({ x: four, gate: new Float32Array(3), hidden: 4 })).toThrow(argument('gate'))
    expect(() => gateLogits({ x: four, gate: four, hidden: 0 })).toThrow(argument('hidden'))
  })
})

describe('makeActivations', () => {
  const sizes = { seed: 1, rank: 0, numTokens: 64, hidden: 100 }

  it('makes values that bf16 holds exactly, of deviation 1', () => {
    const x = makeActivations(sizes)
    expect(x).toHaveLength(6400)
    expect(bf16ToF32Array(f32ToBf16Array(x))).toEqual(x)
    expect(Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length)).toBeCloseTo(1, 1)
  })

  it('makes the same rows again, others for another seed and rank, and more behind them for more tokens', () => {
    const x = makeActivations(sizes)
    expect(makeActivations(sizes)).toEqual(x)
    expect(makeActivations({ ...sizes, seed: 2 })).not.toEqual(x)
    expect(makeActivations({ ...sizes, rank: 1 })).not.toEqual(x)
    expect(makeActivations({ ...sizes, numTokens: 70 }).subarray(0, 6400)).toEqual(x)
    expect(makeActivations({ ...sizes, numTokens: 0 })).toHaveLength(0)
  })

  it.each([
    ['seed', 0.5],
    ['rank', -1],
    ['numTokens', -1],
    ['hidden', 0],
  ])('refuses a wrong %s', (argument, value) => {
    const wrong = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } })
    expect(() => makeActivations({ ...sizes, [argument]: value })).toThrow(wrong)
  })
})
