import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { expertRangeOfRank, rankOfExpert } from '../../src/routing/placement.js'

const placements = fc.record({ experts: fc.integer({ min: 1, max: 300 }), ranks: fc.integer({ min: 1, max: 64 }) })

describe('expertRangeOfRank', () => {
  it('gives the first E mod R ranks one more', () => {
    const counts = Array.from({ length: 8 }, (_, rank) => expertRangeOfRank({ experts: 13, ranks: 8, rank }))
    expect(counts.map(({ begin, end }) => end - begin)).toEqual([2, 2, 2, 2, 2, 1, 1, 1])
  })

  it('leaves the last ranks without experts when there are few', () => {
    const ranges = Array.from({ length: 4 }, (_, rank) => expertRangeOfRank({ experts: 2, ranks: 4, rank }))
    expect(ranges).toEqual([
      { begin: 0, end: 1 },
      { begin: 1, end: 2 },
      { begin: 2, end: 2 },
      { begin: 2, end: 2 },
    ])
  })

  it('cuts all experts into neighbouring ranges whose sizes fall by at most one, and agrees with rankOfExpert', () => {
    fc.assert(
      fc.property(placements, ({ experts, ranks }) => {
        let next = 0
        const counts: number[] = []
        for (let rank = 0; rank < ranks; rank++) {
          const { begin, end } = expertRangeOfRank({ experts, ranks, rank })
          expect(begin).toBe(next)
          for (let expert = begin; expert < end; expert++) expect(rankOfExpert({ experts, ranks, expert })).toBe(rank)
          counts.push(end - begin)
          next = end
        }
        expect(next).toBe(experts)
        expect(counts).toEqual([...counts].sort((a, b) => b - a))
        expect(counts[0]! - counts.at(-1)!).toBeLessThanOrEqual(1)
      }),
    )
  })

  it('refuses what is not there', () => {
    const argument = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
    expect(() => expertRangeOfRank({ experts: 0, ranks: 1, rank: 0 })).toThrow(argument)
    expect(() => expertRangeOfRank({ experts: 1, ranks: 1.5, rank: 0 })).toThrow(argument)
    expect(() => expertRangeOfRank({ experts: 1, ranks: 2, rank: 2 })).toThrow(argument)
    expect(() => rankOfExpert({ experts: 4, ranks: 2, expert: 4 })).toThrow(argument)
  })
})
