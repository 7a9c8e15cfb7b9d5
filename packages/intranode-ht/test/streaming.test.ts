import { Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { maxGroupedRows } from '../src/index.js'
import { randomNumbers, withWorld } from './world.js'

/** Sizes from which rows are written past the caches, with rows that do not fill whole lines. */
const hidden = 4104
const tokens = 1100
const numExperts = 4

test('rows that go past the caches arrive and come home as the others do', async () => {
  const capacity = maxGroupedRows({ maxTokensPerRank: tokens, numRanks: 2, numExperts, topk: 2, expertAlignment: 1 })
  await withWorld(2, { hidden, maxTokensPerRank: tokens, capacity, maxTopk: 2, threads: () => 2 }, async (ranks) => {
    const inputs = ranks.map(({ rank }) => {
      const random = randomNumbers(rank + 7)
      // Small integers: sums are exact, so expectations need no oracle.
      const x = Uint16Array.from(
        { length: tokens * hidden },
        () => [0x3f80, 0x4000, 0x4040, 0xbf80][Math.floor(random() * 4)]!,
      )
      const ids = Int32Array.from({ length: tokens * 2 }, () => Math.floor(random() * numExperts))
      return { x, ids }
    })
    await Promise.all(
      ranks.map(async ({ rank, buffer, stream }) => {
        const { x, ids } = inputs[rank]!
        const input = Tensor.copyOf(x, [tokens, hidden], 'bf16', stream.device)
        const topkIdx = Tensor.copyOf(ids, [tokens, 2], 'i32', stream.device)
        const topkWeights = Tensor.from(new Float32Array(tokens * 2).fill(1), [tokens, 2], 'f32', stream.device)
        const plain = await buffer.dispatch(input, { topkIdx, numExperts, stream })
        const grouped = await buffer.dispatchGrouped(input, {
          topkIdx,
          topkWeights,
          numExperts,
          expertAlignment: 1,
          stream,
        })
        await stream.synchronize()
        const received = (await plain.recvX.read()) as Uint16Array
        const rowOf = (row: number): Uint16Array => received.subarray(row * hidden, (row + 1) * hidden)
        const sources = [0, 1].flatMap((source) =>
          Array.from({ length: tokens }, (_, token) => ({ source, token })).filter(({ token }) =>
            inputs[source]!.ids.subarray(token * 2, token * 2 + 2).some((id) => id >> 1 === rank),
          ),
        )
        expect(plain.recvX.shape[0]).toBe(sources.length)
        sources.forEach(({ source, token }, row) => {
          const expected = inputs[source]!.x.subarray(token * hidden, (token + 1) * hidden)
          expect(bytesOf(rowOf(row)).equals(bytesOf(expected))).toBe(true)
        })
        // A copy outside the slot is staged first.
        const results = Tensor.copyOf(received, plain.recvX.shape, 'bf16', stream.device)
        const { combinedX } = buffer.combine(results, plain.handle, { stream })
        const fromGroups = buffer.combineGrouped(grouped.recvX, grouped.handle, { stream })
        await stream.synchronize()
        const values = await input.readNumbers()
        const sums = await combinedX.readNumbers()
        const sumsFromGroups = await fromGroups.combinedX.readNumbers()
        const expectedSum = (token: number, copies: number): boolean =>
          rowEquals(sums, token, (i) => values[token * hidden + i]! * copies)
        for (let token = 0; token < tokens; token++) {
          const owners = new Set(Array.from(ids.subarray(token * 2, token * 2 + 2), (id) => id >> 1)).size
          expect(expectedSum(token, owners)).toBe(true)
          expect(rowEquals(sumsFromGroups, token, (i) => values[token * hidden + i]! * 2)).toBe(true)
        }
      }),
    )
  })
})

const bytesOf = (values: Uint16Array): Buffer => Buffer.from(values.buffer, values.byteOffset, values.byteLength)

type Numbers = Awaited<ReturnType<Tensor['readNumbers']>>

function rowEquals(matrix: Numbers, row: number, expected: (column: number) => number): boolean {
  const values = matrix.subarray(row * hidden, (row + 1) * hidden)
  return values.every((value, column) => value === expected(column))
}
