import { createHash } from 'node:crypto'
import { type Stream, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { device, randomInputs, randomNumbers, toTensors, withWorld } from './world.js'

test('combine is bit-identical over 100 runs, whatever threads and delays', async () => {
  const shape = { numTokens: [40, 1, 17, 40], hidden: 136, topk: 6, numExperts: 8, dtype: 'f32' as const, seed: 3 }
  const inputs = randomInputs(shape)
  const received = reference.dispatch(inputs, shape.numExperts)
  // Magnitudes far apart, so that another order of the additions gives other bits.
  const results = received.map((rows, rank) =>
    rows.map((row) => row.values.map((v) => Math.fround(v * 10 ** ((rank * 7) % 4) * 3e6))),
  )
  const bits = (rows: readonly (readonly number[])[]): string =>
    createHash('sha256').update(Float32Array.from(rows.flat())).digest('hex')
  const expected = reference.combine(received, results, shape).map(bits)
  const backwards = reference.combine(received.toReversed(), results.toReversed(), shape).map(bits)
  expect(backwards).not.toEqual(expected)

  const random = randomNumbers(9)
  // Each number of threads has streams of its own. A GPU runs so many streams at a time: with more, a rank's kernels might
  // queue up behind those that wait for them.
  const streams = new Map<string, Stream>()
  const streamOf = (owner: number, threads: number): Stream => {
    const key = device.kind === 'cpu' ? `${owner} ${threads}` : `${owner}`
    if (!streams.has(key)) streams.set(key, device.createStream({ threads }))
    return streams.get(key)!
  }
  await withWorld(4, { hidden: shape.hidden, maxTokensPerRank: 40, maxElementBytes: 4 }, async (ranks) => {
    for (let run = 0; run < 100; run++) {
      const sums = await Promise.all(
        ranks.map(async ({ rank, buffer }) => {
          const stream = streamOf(rank, 1 + ((run + rank) % 4))
          const later = streamOf(rank + 4, 1 + (run % 3))
          const shake = (of: typeof stream): void => of.delay(Math.floor(random() ** 4 * 2000))
          shake(stream)
          const { x, ...routing } = toTensors(inputs[rank]!, shape)
          const got = await buffer.dispatch(x, { ...routing, numExperts: shape.numExperts, stream })
          const y = Tensor.from(results[rank]!.flat(), [results[rank]!.length, shape.hidden], 'f32')
          shake(later)
          const { combinedX, event } = buffer.combine(y, got.handle, { stream: later, previousEvent: got.event })
          // The next dispatch is enqueued on another stream, in the order of this event.
          await event.synchronize()
          return createHash('sha256').update(await combinedX.read()).digest('hex')
        }),
      )
      expect(sums).toEqual(expected)
    }
    for (const stream of streams.values()) await stream.close()
  })
})
