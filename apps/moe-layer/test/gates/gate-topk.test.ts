import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Gate, sigmoidGate, softmaxGate } from '../../src/gates/gate.js'
import { gateTopk, type GateTopkOptions } from '../../src/gates/gate-topk.js'
import { slowGate } from './slow-gate.js'

const one = (logits: number[], topk: number, options: Partial<GateTopkOptions> = {}) => {
  const { topkIdx, topkWeights } = gateTopk({
    ...{ gate: softmaxGate, logits: Float32Array.from(logits), numTokens: 1, numExperts: logits.length, topk },
    ...options,
  })
  return { ids: [...topkIdx], weights: [...topkWeights] }
}
const plainSoftmax: Gate = { ...softmaxGate, renormalize: false }
const plainSigmoid: Gate = { scoring: 'sigmoid', renormalize: false, scalingFactor: 1 }
const logit = (score: number): number => Math.log(score / (1 - score))

describe('gateTopk with softmax scoring', () => {
  const logits = [1, 5, 2, 2].map(Math.log)

  it('gives probabilities over all experts, or over the chosen ones', () => {
    const all = one(logits, 2, { gate: plainSoftmax })
    expect(all.ids).toEqual([1, 2])
    expect(all.weights[0]).toBeCloseTo(0.5, 6)
    expect(all.weights[1]).toBeCloseTo(0.2, 6)
    const chosen = one(logits, 2)
    expect(chosen.ids).toEqual([1, 2])
    expect(chosen.weights[0]).toBeCloseTo(5 / 7, 6)
    expect(chosen.weights[1]).toBeCloseTo(2 / 7, 6)
  })

  it('lets the lower id win ties', () => {
    expect(one([1, 3, 3, 2, 3], 2).ids).toEqual([1, 2])
    expect(one([0, 0, 0, 0], 4).ids).toEqual([0, 1, 2, 3])
    expect(one([0, -0, 1], 3).ids).toEqual([2, 0, 1])
  })

  it('puts -1 with weight 0 where too few experts are allowed', () => {
    expect(one([-Infinity, 4, -Infinity], 3)).toEqual({ ids: [1, -1, -1], weights: [1, 0, 0] })
    expect(one([-Infinity, -Infinity], 2)).toEqual({ ids: [-1, -1], weights: [0, 0] })
  })

  it('stays finite for logits of any size', () => {
    expect(one([3e38, -3e38, 3e38], 3)).toEqual({ ids: [0, 2, 1], weights: [0.5, 0.5, 0] })
  })

  it('judges a group by its best expert', () => {
    const gate = { ...softmaxGate, groups: { count: 2, kept: 1 } }
    expect(one([0, 9, 8, 8], 2, { gate }).ids).toEqual([1, 0])
  })
})

describe('gateTopk with sigmoid scoring', () => {
  const scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6].map(logit)

  it('chooses by score plus bias and weighs by the score alone', () => {
    const correctionBias = Float32Array.of(1, 0, 0, 0, 0, -1)
    const { ids, weights } = one(scores, 2, { gate: plainSigmoid, correctionBias })
    expect(ids).toEqual([0, 4])
    expect(weights[0]).toBeCloseTo(0.1, 6)
    expect(weights[1]).toBeCloseTo(0.5, 6)
  })

  it('divides by the sum of the chosen, then scales', () => {
    const { ids, weights } = one(scores, 2, { gate: sigmoidGate({ count: 1, kept: 1 }, 2.5) })
    expect(ids).toEqual([5, 4])
    expect(weights[0]).toBeCloseTo((2.5 * 6) / 11, 6)
    expect(weights[1]).toBeCloseTo((2.5 * 5) / 11, 6)
  })

  it('judges a group by the sum of its two best, or by its best where there is no bias', () => {
    const gate = sigmoidGate({ count: 2, kept: 1 }, 1)
    const logits = [0.1, 0.8, 0.2, 0.6, 0.7, 0.1].map(logit)
    expect(one(logits, 1, { gate, correctionBias: new Float32Array(6) }).ids).toEqual([4])
    expect(one(logits, 1, { gate }).ids).toEqual([1])
  })

  it('does not keep a group of zeros before one of negative choice scores', () => {
    const gate = sigmoidGate({ count: 2, kept: 1 }, 1)
    const correctionBias = Float32Array.of(-9, -9, -8, -8)
    expect(one([0, 0, 0, 0], 2, { gate, correctionBias }).ids).toEqual([2, 3])
  })

  it('finds the one allowed expert among groups of barred ones', () => {
    const gate = sigmoidGate({ count: 4, kept: 2 }, 1)
    const logits = new Array<number>(8).fill(-Infinity).with(7, 0)
    const correctionBias = new Float32Array(8)
    expect(one(logits, 3, { gate, correctionBias })).toEqual({ ids: [7, -1, -1], weights: [1, 0, 0] })
  })

  it('leaves groups aside where experts are no multiple of them, or not more', () => {
    const gate = sigmoidGate({ count: 4, kept: 1 }, 1)
    expect(one([4, 3, 2, 1], 3, { gate }).ids).toEqual([0, 1, 2])
    expect(one([6, 5, 4, 3, 2, 1], 6, { gate }).ids).toEqual([0, 1, 2, 3, 4, 5])
  })

  it('gives zeros, not NaN, where all chosen scores are zero', () => {
    expect(one([-1e38, -2e38], 2, { gate: { ...plainSigmoid, renormalize: true } })).toEqual({
      ids: [0, 1],
      weights: [0, 0],
    })
  })
})

const hostile = [-Infinity, -3.4e38, -1000, -104, -88.5, -1e-45, -0, 0, 1e-45, 1e-7, 1, 16.7, 88.8, 1000, 3.4e38]
const values = fc.oneof(
  fc.constantFrom(...hostile),
  fc.integer({ min: -3, max: 3 }),
  fc.float({ noNaN: true, min: -20, max: 20 }),
)
const biases = fc.oneof(fc.constantFrom(0, -0, -1, 1, -1e30, 1e30, 1e-45), fc.float({ noNaN: true, min: -2, max: 2 }))

const cases = fc
  .record({
    groups: fc.integer({ min: 1, max: 6 }),
    size: fc.integer({ min: 1, max: 8 }),
    extra: fc.constantFrom(0, 0, 0, 1),
  })
  .chain(({ groups, size, extra }) => {
    const numExperts = groups * size + extra
    return fc.record({
      numExperts: fc.constant(numExperts),
      numTokens: fc.integer({ min: 0, max: 4 }),
      scoring: fc.constantFrom('softmax', 'sigmoid' as const),
      groups: fc.option(fc.record({ count: fc.constant(groups), kept: fc.integer({ min: 1, max: groups }) })),
      renormalize: fc.boolean(),
      scalingFactor: fc.constantFrom(1, 2.5, 2.827),
      logits: fc.array(values, { minLength: 4 * numExperts, maxLength: 4 * numExperts }),
      bias: fc.option(fc.array(biases, { minLength: numExperts, maxLength: numExperts })),
      barred: fc.option(fc.record({ from: fc.nat(numExperts), liftsGroups: fc.boolean() })),
      topk: fc.nat(),
    })
  })
  .map(
    ({
      numExperts,
      numTokens,
      scoring,
      groups,
      renormalize,
      scalingFactor,
      logits,
      bias,
      barred,
      topk,
    }): GateTopkOptions => {
      const grouped = groups !== null && numExperts > groups.count && numExperts % groups.count === 0
      const most = grouped ? (numExperts / groups.count) * groups.kept : numExperts
      return {
        gate: { scoring, renormalize, scalingFactor, ...(groups !== null && { groups }) } as Gate,
        ...{ numTokens, numExperts, topk: 1 + (topk % most) },
        logits: Float32Array.from(logits.slice(0, numTokens * numExperts)),
        ...(bias !== null && scoring === 'sigmoid' && { correctionBias: Float32Array.from(bias) }),
        ...(barred !== null && {
          restriction: {
            liftsGroups: barred.liftsGroups,
            bar: (choice: Float32Array, token: number) =>
              void choice.fill(-Infinity, (barred.from + token) % numExperts),
          },
        }),
      }
    },
  )

describe('gateTopk', () => {
  it('agrees with the slow definition on hostile logits, biases, groups and restrictions', () => {
    fc.assert(
      fc.property(cases, (options) => {
        const { numTokens, topk } = options
        const before = options.logits.slice()
        const { topkIdx, topkWeights } = gateTopk(options)
        expect(options.logits).toEqual(before)
        expect([topkIdx.length, topkWeights.length]).toEqual([numTokens * topk, numTokens * topk])
        for (let token = 0; token < numTokens; token++) {
          const { ids, weights } = slowGate(options, token)
          const free = topk - ids.length
          expect([...topkIdx.subarray(token * topk, (token + 1) * topk)]).toEqual([
            ...ids,
            ...new Array<number>(free).fill(-1),
          ])
          for (let slot = 0; slot < topk; slot++) {
            const expected = weights[slot] ?? 0
            const distance = Math.abs(topkWeights[token * topk + slot]! - expected)
            expect(distance).toBeLessThanOrEqual(1e-6 * Math.abs(expected) + 1e-45)
          }
        }
      }),
      { numRuns: 500 },
    )
  })

  it.each<[string, Partial<GateTopkOptions>]>([
    ['logits', { logits: Float32Array.of(1, NaN) }],
    ['logits', { logits: Float32Array.of(1, Infinity) }],
    ['logits', { logits: new Float32Array(3) }],
    ['topk', { topk: 3 }],
    ['topk', { topk: 0 }],
    ['topk', { numExperts: 4, topk: 3, gate: sigmoidGate({ count: 2, kept: 1 }, 1), logits: new Float32Array(4) }],
    ['numTokens', { numTokens: -1 }],
    ['numExperts', { numExperts: 0 }],
    ['correctionBias', { correctionBias: new Float32Array(2) }],
    ['correctionBias', { gate: plainSigmoid, correctionBias: new Float32Array(3) }],
    ['correctionBias', { gate: plainSigmoid, correctionBias: Float32Array.of(0, NaN) }],
    ['correctionBias', { gate: plainSigmoid, correctionBias: Float32Array.of(-Infinity, 0) }],
    ['groups.kept', { gate: sigmoidGate({ count: 2, kept: 0 }, 1) }],
    ['groups.count', { gate: sigmoidGate({ count: 1.5, kept: 1 }, 1) }],
    ['scalingFactor', { gate: sigmoidGate({ count: 1, kept: 1 }, NaN) }],
  ])('refuses wrong %s: %j', (argument, wrong) => {
    const options = { gate: softmaxGate, logits: new Float32Array(2), numTokens: 1, numExperts: 2, topk: 1 }
    expect(() => gateTopk({ ...options, ...wrong })).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }),
    )
  })
})
