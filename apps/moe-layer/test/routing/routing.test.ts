import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Gate, sigmoidGate, softmaxGate } from '../../src/gates/gate.js'
import { gateTopk } from '../../src/gates/gate-topk.js'
import { fillFromTable, normalTable } from '../../src/random/normal-values.js'
import { randomStream } from '../../src/random/random-stream.js'
import { expertRangeOfRank, rankOfExpert } from '../../src/routing/placement.js'
import { parseRouting } from '../../src/routing/routing-kind.js'
import { createRouting, type RoutingOptions } from '../../src/routing/routing.js'

const cases = fc
  .record({
    ranks: fc.integer({ min: 1, max: 12 }),
    experts: fc.integer({ min: 1, max: 40 }),
    numTokens: fc.integer({ min: 0, max: 30 }),
    rank: fc.nat(),
    target: fc.nat(),
    topk: fc.nat(),
    seed: fc.nat(),
  })
  .map((raw) => ({
    ...raw,
    rank: raw.rank % raw.ranks,
    target: raw.target % raw.ranks,
    topk: 1 + (raw.topk % raw.experts),
    logits: scores(raw.numTokens * raw.experts, raw.seed),
  }))

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never

function scores(length: number, seed: number): Float32Array {
  const values = new Float32Array(length)
  fillFromTable(values, { table: normalTable(1), stream: randomStream(seed, 'scores'), first: 0 })
  return values
}

const ownedBy = ({ experts, ranks }: Case, rank: number) => {
  const { begin, end } = expertRangeOfRank({ experts, ranks, rank })
  return end - begin
}

/** The experts of every token, without the slots that have none. */
function choose(one: Case, kind: RoutingOptions['kind']): number[][] {
  const before = one.logits.slice()
  const { topkIdx, topkWeights } = createRouting({ ...one, kind }).route(one.logits, one.numTokens)
  expect(one.logits).toEqual(before)
  return Array.from({ length: one.numTokens }, (_, token) => {
    const ids = [...topkIdx.subarray(token * one.topk, (token + 1) * one.topk)]
    const chosen = ids.filter((id) => id !== -1)
    const weights = topkWeights.subarray(token * one.topk, (token + 1) * one.topk)
    // Slots without an expert come last and weigh nothing; the others differ and add up to 1.
    expect(ids).toEqual([...chosen, ...new Array<number>(one.topk - chosen.length).fill(-1)])
    expect(new Set(chosen).size).toBe(chosen.length)
    expect(weights.subarray(chosen.length).every((weight) => weight === 0)).toBe(true)
    expect(weights.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 5)
    return chosen
  })
}

describe('createRouting', () => {
  it('uniform is the gate alone', () => {
    fc.assert(
      fc.property(cases, (one) => {
        const { topkIdx } = gateTopk({ ...one, gate: softmaxGate, numExperts: one.experts })
        expect(choose(one, { name: 'uniform' }).flat()).toEqual([...topkIdx])
      }),
    )
  })

  it('hot sends every row to one rank, as far as its experts reach', () => {
    fc.assert(
      fc.property(cases, (one) => {
        fc.pre(ownedBy(one, one.target) > 0)
        for (const chosen of choose(one, { name: 'hot', rank: one.target })) {
          expect(chosen).toHaveLength(Math.min(one.topk, ownedBy(one, one.target)))
          for (const expert of chosen) expect(rankOfExpert({ ...one, expert })).toBe(one.target)
        }
      }),
    )
  })

  it('empty sends nothing to one rank and leaves no slot free without need', () => {
    fc.assert(
      fc.property(cases, (one) => {
        const others = one.experts - ownedBy(one, one.target)
        fc.pre(others > 0)
        for (const chosen of choose(one, { name: 'empty', rank: one.target })) {
          expect(chosen).toHaveLength(Math.min(one.topk, others))
          for (const expert of chosen) expect(rankOfExpert({ ...one, expert })).not.toBe(one.target)
        }
      }),
    )
  })

  it('skewed sends half of all dispatched rows to rank 0', () => {
    fc.assert(
      fc.property(cases, (one) => {
        fc.pre(one.ranks > 1 && ownedBy(one, 0) < one.experts)
        const rowsTo = new Array<number>(one.ranks).fill(0)
        for (const chosen of choose(one, { name: 'skewed' })) {
          for (const rank of new Set(chosen.map((expert) => rankOfExpert({ ...one, expert })))) rowsTo[rank]! += 1
        }
        const others = rowsTo.slice(1).reduce((sum, rows) => sum + rows, 0)
        // With one expert a token the rows take turns, so an odd number of tokens leaves one over.
        expect(Math.abs(rowsTo[0]! - others)).toBeLessThanOrEqual(one.topk === 1 ? one.numTokens % 2 : 0)
      }),
    )
  })

  it('skewed sends half of all slots to rank 0 where ranks own enough experts, also for single tokens on many ranks', () => {
    for (const topk of [1, 2, 5, 8]) {
      let toRank0 = 0
      for (let rank = 0; rank < 4; rank++) {
        const one = { ranks: 4, experts: 64, topk, rank, numTokens: 1, logits: scores(64, rank) }
        const { topkIdx } = createRouting({ ...one, kind: { name: 'skewed' } }).route(one.logits, 1)
        expect(topkIdx).not.toContain(-1)
        toRank0 += topkIdx.filter((expert) => expert < 16).length
      }
      expect(toRank0).toBe((4 * topk) / 2)
    }
  })

  it('skewed over one rank is the gate alone', () => {
    const one = { ranks: 1, experts: 6, topk: 3, rank: 0, logits: scores(12, 1) }
    const choice = (name: 'skewed' | 'uniform') => createRouting({ ...one, kind: { name } }).route(one.logits, 2)
    expect(choice('skewed')).toEqual(choice('uniform'))
  })

  it('keeps weights over all allowed experts when they are not renormalised', () => {
    const options = { ranks: 2, experts: 4, topk: 1, rank: 0, gate: { ...softmaxGate, renormalize: false } }
    const { topkIdx, topkWeights } = createRouting({ ...options, kind: { name: 'hot', rank: 1 } }).route(
      Float32Array.of(9, 9, Math.log(1), Math.log(3)),
      1,
    )
    expect([...topkIdx]).toEqual([3])
    expect(topkWeights[0]).toBeCloseTo(0.75, 6)
  })

  describe('with the gate of DeepSeek-V3', () => {
    const gate: Gate = sigmoidGate({ count: 8, kept: 4 }, 2.5)
    const numTokens = 40
    const options = {
      ranks: 4,
      experts: 64,
      topk: 8,
      rank: 1,
      gate,
      correctionBias: scores(64, 5).map((value) => value / 4),
    }
    const route = (kind: RoutingOptions['kind'], changes: Partial<RoutingOptions> = {}) => {
      const { topkIdx, topkWeights } = createRouting({ ...options, ...changes, kind }).route(
        scores(numTokens * 64, 3),
        numTokens,
      )
      return Array.from({ length: numTokens }, (_, token) => {
        const ids = topkIdx.subarray(token * 8, (token + 1) * 8)
        const weights = topkWeights.subarray(token * 8, (token + 1) * 8)
        expect(weights.reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(2.5, 5)
        return { ids: [...ids], ranks: new Set(Array.from(ids, (id) => Math.floor(id / 16))) }
      })
    }

    it('keeps tokens to half of the groups', () => {
      for (const { ids } of route({ name: 'uniform' })) {
        expect(ids).not.toContain(-1)
        expect(new Set(ids.map((id) => Math.floor(id / 8))).size).toBeLessThanOrEqual(4)
      }
    })

    it('hot and empty act on the choice scores and keep the limit', () => {
      for (const { ids, ranks } of route({ name: 'hot', rank: 2 })) {
        expect(ids).not.toContain(-1)
        expect([...ranks]).toEqual([2])
      }
      for (const { ids, ranks } of route({ name: 'empty', rank: 2 })) {
        expect(ids).not.toContain(-1)
        expect(ranks).not.toContain(2)
        expect(new Set(ids.map((id) => Math.floor(id / 8))).size).toBeLessThanOrEqual(4)
      }
    })

    it('skewed sends half of all slots to rank 0 whatever the groups', () => {
      const limited = { gate: sigmoidGate({ count: 8, kept: 1 }, 2.5) }
      for (const { ids } of route({ name: 'skewed' }, limited)) {
        expect(ids.filter((id) => id >= 0 && id < 16)).toHaveLength(4)
        expect(ids).not.toContain(-1)
      }
    })

    it('refuses a top-k that the kept groups cannot fill', () => {
      expect(() => createRouting({ ...options, topk: 33, kind: { name: 'uniform' } })).toThrow(
        expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringContaining('1 to 32') }),
      )
    })
  })

  it.each<[string, Partial<RoutingOptions>]>([
    ['hot on a rank without experts', { kind: { name: 'hot', rank: 3 }, experts: 2 }],
    ['empty on the only rank with experts', { kind: { name: 'empty', rank: 0 }, experts: 1 }],
    ['empty on the only rank', { kind: { name: 'empty', rank: 0 }, ranks: 1 }],
    ['skewed with all experts on rank 0', { kind: { name: 'skewed' }, experts: 1 }],
    ['a top-k above the number of experts', { topk: 9 }],
    ['a top-k of 0', { topk: 0 }],
  ])('refuses %s', (_title, wrong) => {
    const options: RoutingOptions = { kind: { name: 'uniform' }, ranks: 4, experts: 8, topk: 1, rank: 0 }
    expect(() => createRouting({ ...options, ...wrong })).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG' }),
    )
  })

  it('takes an empty rank that owns no experts anyway', () => {
    const routing = createRouting({ kind: { name: 'empty', rank: 3 }, ranks: 4, experts: 2, topk: 1, rank: 0 })
    expect([...routing.route(Float32Array.of(1, 2), 1).topkIdx]).toEqual([1])
  })

  it('refuses scores of another size', () => {
    const routing = createRouting({ kind: { name: 'uniform' }, ranks: 1, experts: 4, topk: 1, rank: 0 })
    expect(() => routing.route(new Float32Array(5), 1)).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }),
    )
  })
})

describe('parseRouting', () => {
  it.each([
    ['uniform', { name: 'uniform' }],
    ['skewed', { name: 'skewed' }],
    ['hot:0', { name: 'hot', rank: 0 }],
    ['empty:7', { name: 'empty', rank: 7 }],
  ])('reads %s', (text, kind) => expect(parseRouting(text, { ranks: 8 })).toEqual(kind))

  it.each(['', 'hot', 'hot:', 'hot:-1', 'hot:1.5', 'hot:8', 'empty:99', 'cold:1', 'uniform:1', ' hot:1', 'hot:1 '])(
    'refuses "%s"',
    (text) => {
      const config = expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringContaining(text) })
      expect(() => parseRouting(text, { ranks: 8 })).toThrow(config)
    },
  )
})
