import { describe, expect, it } from 'vitest'
import { expertRowsOf, maskedPlacesOf, sortedPlacesOf } from '../src/workload/expert-rows.js'
import { Routing } from '../src/workload/routing.js'

describe('places of slots', () => {
  const routing = new Routing({ ranks: 2, tokens: 40, topk: 3, experts: 7, seed: 3 })
  const rows = expertRowsOf(routing, 1)
  const { received, expertNumTokens } = rows

  it('fill each batch of the masked layout from its front', () => {
    const { maxTokens, inverse } = maskedPlacesOf(rows)
    expect(maxTokens % 16).toBe(0)
    const expected = Array.from(expertNumTokens, (count, expert) =>
      Array.from({ length: count }, (_, i) => expert * maxTokens + i),
    )
    expect(inverse.filter((place) => place >= 0).sort()).toEqual(Int32Array.from(expected.flat()))
    inverse.forEach((place, slot) => {
      if (place >= 0) expect(Math.floor(place / maxTokens)).toBe(received.topkIdx[slot])
    })
  })

  it('are every row of the sorted layout once, those without a local expert behind the last offset', () => {
    const { offsets, inverse } = sortedPlacesOf(rows)
    expect(inverse.slice().sort()).toEqual(Int32Array.from({ length: received.rows * 3 }, (_, i) => i))
    expect(offsets.at(-1)).toBe(received.slots)
    inverse.forEach((place, slot) => {
      const expert = received.topkIdx[slot]!
      expect(place >= (offsets[expert < 0 ? offsets.length - 1 : expert] ?? 0)).toBe(true)
      if (expert >= 0) expect(place).toBeLessThan(offsets[expert + 1]!)
    })
  })
})
