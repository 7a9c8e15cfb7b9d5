import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { softmaxTopk } from '../../src/routing/softmax-topk.js'

const one = (logits: number[], topk: number, renormalize = false) =>
  softmaxTopk({ logits: Float32Array.from(logits), numTokens: 1, numExperts: logits.length, topk, renormalize })

describe('softmaxTopk', () => {
  it('gives softmax probabilities over all experts', () => {
    const { topkIdx, topkWeights } = one([Math.log(1), Math.log(5), Math.log(2), Math.log(2)], 2)
    expect([...topkIdx]).toEqual([1, 2])
    expect(topkWeights[0]).toBeCloseTo(0.5, 6)
    expect(topkWeights[1]).toBeCloseTo(0.2, 6)
  })

  it('divides by the sum of the chosen when asked to', () => {
    const { topkWeights } = one([Math.log(1), Math.log(5), Math.log(2), Math.log(2)], 2, true)
    expect(topkWeights[0]).toBeCloseTo(5 / 7, 6)
    expect(topkWeights[1]).toBeCloseTo(2 / 7, 6)
  })

  it('lets the lower id win ties', () => {
    expect([...one([1, 3, 3, 2, 3], 2).topkIdx]).toEqual([1, 2])
    expect([...one([0, 0, 0, 0], 4).topkIdx]).toEqual([0, 1, 2, 3])
    expect([...one([0, -0, 1], 3).topkIdx]).toEqual([2, 0, 1])
  })

  it('puts -1 with weight 0 where too few experts are allowed', () => {
    const { topkIdx, topkWeights } = one([-Infinity, 4, -Infinity], 3, true)
    expect([...topkIdx]).toEqual([1, -1, -1])
    expect([...topkWeights]).toEqual([1, 0, 0])
    const nobody = one([-Infinity, -Infinity], 2)
    expect([...nobody.topkIdx, ...nobody.topkWeights]).toEqual([-1, -1, 0, 0])
  })

  it('stays finite for logits of any size', () => {
    const { topkWeights } = one([3e38, -3e38, 3e38], 3)
    expect([...topkWeights]).toEqual([0.5, 0.5, 0])
  })

  it('agrees with sorting all experts', () => {
    const cases = fc
      .record({
        numTokens: fc.integer({ min: 0, max: 5 }),
        numExperts: fc.integer({ min: 1, max: 40 }),
        renormalize: fc.boolean(),
      })
      .chain((sizes) =>
        fc.record({
          sizes: fc.constant(sizes),
          topk: fc.integer({ min: 1, max: sizes.numExperts }),
          // Few different values, so that ties are common.
          logits: fc.array(fc.integer({ min: -4, max: 4 }), {
            minLength: sizes.numTokens * sizes.numExperts,
            maxLength: sizes.numTokens * sizes.numExperts,
          }),
        }),
      )
    fc.assert(
      fc.property(cases, ({ sizes, topk, logits }) => {
        const { numExperts, numTokens, renormalize } = sizes
        const { topkIdx, topkWeights } = softmaxTopk({ ...sizes, topk, logits: Float32Array.from(logits) })
        expect([topkIdx.length, topkWeights.length]).toEqual([numTokens * topk, numTokens * topk])
        for (let token = 0; token < numTokens; token++) {
          const row = logits.slice(token * numExperts, (token + 1) * numExperts)
          const ids = row.map((_, id) => id).sort((a, b) => row[b]! - row[a]! || a - b)
          expect([...topkIdx.subarray(token * topk, (token + 1) * topk)]).toEqual(ids.slice(0, topk))
          const among = renormalize ? ids.slice(0, topk) : ids
          const sum = among.reduce((total, id) => total + Math.exp(row[id]!), 0)
          for (let slot = 0; slot < topk; slot++) {
            expect(topkWeights[token * topk + slot]).toBeCloseTo(Math.exp(row[ids[slot]!]!) / sum, 6)
          }
        }
      }),
    )
  })

  it('refuses NaN, plus infinity, and sizes that do not fit', () => {
    const argument = (name: string) =>
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: name } })
    expect(() => one([1, NaN], 1)).toThrow(argument('logits'))
    expect(() => one([1, Infinity], 1)).toThrow(argument('logits'))
    expect(() => one([1, 2], 3)).toThrow(argument('topk'))
    expect(() => one([1, 2], 0)).toThrow(argument('topk'))
    const sizes = { numTokens: 2, numExperts: 2, topk: 1, renormalize: true }
    expect(() => softmaxTopk({ ...sizes, logits: new Float32Array(3) })).toThrow(argument('logits'))
    expect(() => softmaxTopk({ ...sizes, numTokens: -1, logits: new Float32Array(4) })).toThrow(argument('numTokens'))
    expect(() => softmaxTopk({ ...sizes, numExperts: 0, logits: new Float32Array(0) })).toThrow(argument('numExperts'))
  })
})
