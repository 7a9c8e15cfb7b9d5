import { describe, expect, test } from 'vitest'
import { Routing } from '../src/workload/routing.js'

const sizes = { tokens: 500, topk: 7, experts: 64, seed: 5 }

describe.each([1, 2, 3, 8])('%i ranks', (ranks) => {
  test.each(['uniform', 'skewed'] as const)(
    '%s routing picks different experts, the same ones for the same seed',
    (kind) => {
      const routing = new Routing({ ...sizes, ranks, routing: kind })
      const again = new Routing({ ...sizes, ranks, routing: kind })
      for (let rank = 0; rank < ranks; rank++) {
        const ids = routing.topkIdx(rank)
        expect(again.topkIdx(rank)).toEqual(ids)
        for (let token = 0; token < sizes.tokens; token++) {
          const own = ids.subarray(token * 7, (token + 1) * 7)
          expect(new Set(own).size).toBe(7)
          expect(own.every((id) => id >= 0 && id < 64)).toBe(true)
        }
      }
    },
  )

  test('skewed routing sends every token to rank 0 and to one other rank, half of its slots to each', () => {
    const { matrix, selections } = new Routing({ ...sizes, ranks, routing: 'skewed' })
    for (let rank = 0; rank < ranks; rank++) {
      expect(matrix[rank]![0]).toBe(500)
      const others = (rows: readonly number[]): number => rows.slice(1).reduce((sum, count) => sum + count, 0)
      expect(others(matrix[rank]!)).toBe(ranks === 1 ? 0 : 500)
      expect(selections[rank]![0]).toBe(ranks === 1 ? 500 * 7 : 500 * 4)
      // No other rank is left out.
      if (ranks > 1) expect(Math.min(...matrix[rank]!.slice(1))).toBeGreaterThan(500 / ranks / 2)
    }
  })
})
