import { describe, expect, it } from 'vitest'
import { expertLoad } from '../../src/report/expert-load.js'
import { countSelections } from '../../src/report/expert-selections.js'
import { reportFixture } from './fixture.js'

function loadOf(...selections: (readonly number[])[]): ReturnType<typeof expertLoad> {
  const { result, ranks } = reportFixture({ ranks: selections.length, experts: selections[0]!.length })
  return expertLoad({ result, ranks: ranks.map((rank, index) => ({ ...rank, expertSelections: selections[index]! })) })
}

describe('selections of a choice', () => {
  it('count every slot, duplicates too, and no slot without an expert', () => {
    expect(countSelections(Int32Array.of(2, 2, -1, 0, 3, -1), 5)).toEqual([1, 0, 2, 1, 0])
    expect(countSelections(new Int32Array(0), 2)).toEqual([0, 0])
  })
})

describe('load of experts', () => {
  it('adds up over ranks and goes to the owners', () => {
    expect(loadOf([1, 2, 3, 0, 0], [1, 0, 3, 0, 0])).toEqual({
      selections: [2, 2, 6, 0, 0],
      owners: [
        { rank: 0, begin: 0, end: 3, selections: 10 },
        { rank: 1, begin: 3, end: 5, selections: 0 },
      ],
      total: 10,
      mean: 2,
      busiest: 2,
      idle: 2,
      imbalance: 3,
      rankImbalance: 2,
    })
  })

  it('leaves ranks without experts out of the comparison', () => {
    const { owners, rankImbalance } = loadOf([4, 4], [0, 0], [0, 0])
    expect(owners.map(({ begin, end }) => end - begin)).toEqual([1, 1, 0])
    expect(rankImbalance).toBe(1)
  })

  it('has nothing to compare without selections', () => {
    expect(loadOf([0, 0])).toMatchObject({ total: 0, idle: 2, imbalance: undefined, rankImbalance: undefined })
  })
})
