import { Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { device, type Rank, randomNumbers, withWorld } from './world.js'

// So many bytes that the cpu writes rows past its caches; not a whole number of cache lines, so that rows begin anywhere in one.
const tokens = 512
const hidden = 4120

test('many long rows come and go home as they are', { timeout: 120_000 }, async () => {
  await withWorld(2, { hidden, maxTokensPerRank: tokens, maxTopk: 2 }, async (ranks) => {
    const trip = async ({ rank, stream, buffer }: Rank): Promise<boolean> => {
      const random = randomNumbers(rank)
      // Positive and finite bf16, any bits below.
      const bits = Uint16Array.from({ length: tokens * hidden }, () => 0x3f80 + Math.floor(random() * 0x80))
      const x = Tensor.copyOf(bits, [tokens, hidden], 'bf16', device)
      // Both ranks get every row, and the answer of one of them counts.
      const topkIdx = Tensor.from(
        Array.from({ length: tokens * 2 }, (_, i) => i % 2),
        [tokens, 2],
        'i32',
      )
      const weights = Array.from({ length: tokens * 2 }, (_, i) => (((i >> 1) + i) % 2 === 0 ? 1 : 0))
      const topkWeights = Tensor.from(weights, [tokens, 2], 'f32')
      const options = { numExperts: 2, useFp8: false, stream, topkWeights }
      const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, options)
      const { combinedX } = buffer.lowLatencyCombine(packedRecvX, topkIdx, undefined, handle, { stream })
      await stream.synchronize()
      return Buffer.compare(Buffer.from(bits.buffer), bytesOf((await combinedX.read()) as Uint16Array)) === 0
    }
    for (let repeat = 0; repeat < 3; repeat++) expect(await Promise.all(ranks.map(trip))).toEqual([true, true])
  })
})

function bytesOf({ buffer, byteOffset, byteLength }: Uint16Array): Buffer {
  return Buffer.from(buffer, byteOffset, byteLength)
}
