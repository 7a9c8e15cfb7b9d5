import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  channelPrefixBytes,
  combineBytes,
  combineGroupedBytes,
  countBytes,
  dispatchBytes,
  dispatchGroupedBytes,
  layoutBytes,
  moePermuteBytes,
  moeUnpermuteBytes,
  permuteBytes,
  permuteMaskedBytes,
  rankPrefixBytes,
  lowLatencyCombineBytes,
  lowLatencyRowBytes,
  scaleBytesOf,
  unpermuteBytes,
} from '../src/measure/byte-rules.js'
import { piecesOf, pushesOf } from '../src/measure/push-plan.js'
import { expertRowsOf } from '../src/workload/expert-rows.js'
import { Routing } from '../src/workload/routing.js'

const shapes = fc
  .record({
    ranks: fc.integer({ min: 1, max: 5 }),
    tokens: fc.integer({ min: 1, max: 12 }),
    experts: fc.integer({ min: 1, max: 13 }),
    topk: fc.integer({ min: 1, max: 6 }),
    seed: fc.integer({ min: 0, max: 1000 }),
  })
  .filter(({ topk, experts }) => topk <= experts)

const hidden = 272
const rowBytes = hidden * 2

/** Every (token, slot) of a rank with the rank that owns its expert, found by asking the placement one by one. */
function* slotsOf(
  routing: Routing,
  rank: number,
): Generator<{ token: number; slot: number; expert: number; owner: number }> {
  const { tokens, topk } = routing.options
  for (let token = 0; token < tokens; token++) {
    for (let slot = 0; slot < topk; slot++) {
      const expert = routing.topkIdx(rank)[token * topk + slot]!
      yield { token, slot, expert, owner: routing.placement.rankOf(expert) }
    }
  }
}

/** Pairs (token, owner) of a rank, each once. */
function pairsOf(routing: Routing, rank: number): { token: number; owner: number }[] {
  const pairs = new Map<string, { token: number; owner: number }>()
  for (const { token, owner } of slotsOf(routing, rank)) pairs.set(`${token} ${owner}`, { token, owner })
  return [...pairs.values()]
}

describe('byte rules agree with a count of every element', () => {
  it('layout and counts', () => {
    expect(layoutBytes({ tokens: 3, topk: 2, experts: 5, ranks: 4 })).toBe(6 * 4 + 12 + 4 * 4 + 5 * 4)
    expect(rankPrefixBytes({ ranks: 3 })).toBe(9 * 4 + 9 * 4)
    expect(channelPrefixBytes({ tokens: 7, ranks: 3, channels: 10 })).toBe(21 + 30 * 4)
    expect(countBytes({ rows: 5, topk: 3 }, 4)).toBe(15 * 4 + 4 * 4)
    // 272 elements have groups of 128, 128 and 16.
    expect(scaleBytesOf(hidden)).toBe(12)
  })

  it('rows of low-latency calls', () => {
    const formats = ['bf16', 'fp8', 'mxfp8', 'nvfp4', 'logfmt10'] as const
    expect(formats.map((format) => lowLatencyRowBytes(format, 288))).toEqual([576, 300, 297, 162, 372])
    // One of four rows stays here.
    const sent = { rank: 0, toRank: [1, 3], sentTokens: 2 }
    const row = { tokens: 2, rowBytes: 64, sentBytes: 44, selections: 7 }
    expect(lowLatencyCombineBytes(sent, row)).toEqual({
      ...{ bytes: 7 * 64 + 2 * 4 * 44 + 2 * 64, logicalBytes: 4 * 44, wireBytes: 3 * 44 },
    })
  })

  it('dispatch and combine', () => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const routing = new Routing(shape)
        for (let rank = 0; rank < shape.ranks; rank++) {
          const pairs = pairsOf(routing, rank)
          const sent = { rank, toRank: routing.matrix[rank]!, sentTokens: shape.tokens }
          const side = shape.topk * 8
          let wire = 0
          let written = 0
          for (const { owner } of pairs) {
            written += rowBytes + 4 + side
            if (owner !== rank) wire += rowBytes + 4 + side
          }
          const read = new Set(pairs.map(({ token }) => token)).size * (rowBytes + side)
          expect(dispatchBytes(sent, { payloadBytes: rowBytes, topk: shape.topk })).toEqual({
            bytes: read + written,
            wireBytes: wire,
            logicalBytes: written,
          })
          const remote = pairs.filter(({ owner }) => owner !== rank).length
          expect(combineBytes(sent, { tokens: shape.tokens, rowBytes })).toEqual({
            bytes: pairs.length * rowBytes + shape.tokens * rowBytes,
            wireBytes: remote * rowBytes,
            logicalBytes: pairs.length * rowBytes,
          })
          const slots = [...slotsOf(routing, rank)]
          const foreign = slots.filter(({ owner }) => owner !== rank).length
          const selections = { ...sent, toRank: routing.selections[rank]! }
          // A row for each selection, or one for each rank, crosses.
          for (const [crossing, crossed, all] of [
            [selections, foreign, slots.length],
            [sent, remote, pairs.length],
          ] as const) {
            const grouped = { selections, crossing }
            expect(dispatchGroupedBytes(grouped, { payloadBytes: rowBytes, topk: shape.topk })).toEqual({
              bytes: shape.tokens * (rowBytes + shape.topk * 4) + slots.length * (rowBytes + 4),
              wireBytes: crossed * (rowBytes + 4),
              logicalBytes: all * (rowBytes + 4),
            })
            expect(combineGroupedBytes(grouped, { tokens: shape.tokens, rowBytes, topk: shape.topk })).toEqual({
              bytes: slots.length * (rowBytes + 8) + shape.tokens * rowBytes,
              wireBytes: crossed * rowBytes,
              logicalBytes: all * rowBytes,
            })
          }
        }
      }),
    )
  })

  it('permute and unpermute', () => {
    fc.assert(
      fc.property(shapes, (shape) => {
        const routing = new Routing(shape)
        const { topk } = shape
        for (let rank = 0; rank < shape.ranks; rank++) {
          const { received, expertNumTokens, inverse, capacity } = expertRowsOf(routing, rank)
          let rows = 0
          let slots = 0
          for (let source = 0; source < shape.ranks; source++) {
            rows += pairsOf(routing, source).filter(({ owner }) => owner === rank).length
            slots += [...slotsOf(routing, source)].filter(({ owner }) => owner === rank).length
          }
          const ofRows = { ...received, topk }
          const row = { read: rowBytes, written: rowBytes + 8 }
          const slotIds = rows * topk * 4
          const moved = rows * row.read + slots * row.written
          expect(permuteBytes(ofRows, row)).toBe(moved + slotIds + slots * 4 + slotIds)
          expect(permuteMaskedBytes(ofRows, row)).toBe(moved + slotIds + slotIds)
          expect(moePermuteBytes(ofRows, row)).toBe(moved + slotIds + slotIds + slotIds)
          expect(moeUnpermuteBytes(ofRows, rowBytes)).toBe(slots * rowBytes + 2 * slotIds + rows * rowBytes)
          expect(unpermuteBytes({ ...received, topk }, rowBytes)).toBe(
            slots * rowBytes + rows * topk * (4 + 4 + 4) + rows * rowBytes,
          )
          expect(expertNumTokens.reduce((sum, count) => sum + count, 0)).toBe(slots)
          const places = inverse.filter((place) => place >= 0)
          expect(new Set(places).size).toBe(slots)
          expect(places.every((place) => place < capacity)).toBe(true)
        }
      }),
    )
  })
})

describe('push plans', () => {
  it('move the same byte matrix to places that do not overlap', () => {
    fc.assert(
      fc.property(shapes, fc.integer({ min: 50, max: 2000 }), (shape, pieceBytes) => {
        const { matrix } = new Routing(shape)
        const plans = matrix.map((_, rank) => pushesOf({ rows: matrix, rowBytes }, rank))
        for (const puts of [plans.map((plan) => plan.pushes), plans.map((plan) => piecesOf(plan.pushes, pieceBytes))]) {
          matrix.forEach((_, peer) => {
            const ranges = puts.flatMap((ofRank) => ofRank.filter((push) => push.peer === peer))
            ranges.sort((a, b) => a.targetOffset - b.targetOffset)
            let end = 0
            let inOrder = true
            for (const { targetOffset, sourceOffset, byteLength } of ranges) {
              inOrder &&= targetOffset === end && sourceOffset + byteLength <= plans[0]!.sourceBytes
              end += byteLength
            }
            expect(inOrder).toBe(true)
            expect(end).toBe(matrix.reduce((sum, row) => sum + row[peer]!, 0) * rowBytes)
            expect(end).toBeLessThanOrEqual(plans[0]!.targetBytes)
          })
        }
      }),
    )
  })
})
