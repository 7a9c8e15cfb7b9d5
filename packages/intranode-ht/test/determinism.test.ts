import { createHash } from 'node:crypto'
import { type Device, type DType, Graph, type Stream, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import {
  captureTogether,
  device,
  deviceOfRank,
  overwrite,
  type Rank,
  randomInputs,
  randomNumbers,
  toTensors,
  withWorld,
} from './world.js'
import { repeats } from '../../../tooling/vitest/repeats.js'

test('combine is bit-identical in every run, whatever threads and delays', async () => {
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
    if (!streams.has(key)) streams.set(key, deviceOfRank(owner % 4).createStream({ threads }))
    return streams.get(key)!
  }
  await withWorld(4, { hidden: shape.hidden, maxTokensPerRank: 40, maxElementBytes: 4 }, async (ranks) => {
    for (let run = 0; run < repeats(100); run++) {
      const sums = await Promise.all(
        ranks.map(async ({ rank, buffer }) => {
          const stream = streamOf(rank, 1 + ((run + rank) % 4))
          const later = streamOf(rank + 4, 1 + (run % 3))
          const shake = (of: typeof stream): void => of.delay(Math.floor(random() ** 4 * 2000))
          shake(stream)
          const { x, ...routing } = toTensors(inputs[rank]!, shape, stream)
          const got = await buffer.dispatch(x, { ...routing, numExperts: shape.numExperts, stream })
          const y = Tensor.from(results[rank]!.flat(), [results[rank]!.length, shape.hidden], 'f32', stream.device)
          shake(later)
          const { combinedX, event } = buffer.combine(y, got.handle, { stream: later, previousEvent: got.event })
          // The next dispatch is enqueued on another stream, in the order of this event.
          await event.synchronize()
          return createHash('sha256')
            .update(await combinedX.read())
            .digest('hex')
        }),
      )
      expect(sums).toEqual(expected)
    }
    for (const stream of streams.values()) await stream.close()
  })
})

const small = { numTokens: [4, 1, 3], hidden: 8, topk: 3, numExperts: 6, dtype: 'f32' as const }
const capacity = 12
// As many replays as are enqueued without a wait.
const batch = 25

/** Inputs of all ranks, what their experts give, and all that each rank must get, in the order of {@link outputsOf}. */
function turnOf(seed: number) {
  const shape = { ...small, seed }
  const inputs = randomInputs(shape)
  const received = reference.dispatch(inputs, small.numExperts)
  // Magnitudes far apart, so that another order of the additions gives other bits.
  const results = received.map((rows, rank) =>
    rows.map((row) => row.values.map((v) => Math.fround(v * 10 ** ((rank * 7) % 4) * 3e6))),
  )
  const sums = reference.combine(received, results, shape)
  const expected = inputs.map(({ topkIdx, topkWeights }, rank) => {
    const rows = received[rank]!
    const behind = (value: number): number[] => Array<number>((capacity - rows.length) * small.topk).fill(value)
    const ids = topkIdx.flat()
    return Buffer.concat(
      [
        Float32Array.from(sums[rank]!.flat()),
        Float32Array.from(topkWeights.flat().map((weight, i) => (ids[i]! < 0 ? 0 : weight))),
        Int32Array.from([...rows.flatMap((row) => row.topkIdx), ...behind(-1)]),
        Float32Array.from([...rows.flatMap((row) => row.topkWeights), ...behind(0)]),
        // What lies behind the rows that arrived is nobody's.
        Float32Array.from(rows.flatMap((row) => row.values)),
      ].map(({ buffer }) => Buffer.from(buffer)),
    )
  })
  return { shape, inputs, results, expected }
}

type Turn = ReturnType<typeof turnOf>

/** Tensors for all outputs of an iteration, one after the other in one memory, which `bytes` is. */
function outputsOf(numTokens: number, device: Device) {
  const columns = [small.hidden, small.topk, small.topk, small.topk, small.hidden]
  const rows = [numTokens, numTokens, capacity, capacity, capacity]
  const ends = rows.map((_, at) => rows.slice(0, at + 1).reduce((sum, count, i) => sum + 4 * count * columns[i]!, 0))
  const bytes = Tensor.zeros([1, ends.at(-1)!], 'u8', device)
  const part = (at: number, dtype: DType): Tensor =>
    new Tensor({ memory: bytes.memory, dtype, shape: [rows[at]!, columns[at]!], byteOffset: ends[at - 1] ?? 0 })
  return {
    ...{ bytes, combinedX: part(0, 'f32'), combinedTopkWeights: part(1, 'f32') },
    ...{ recvTopkIdx: part(2, 'i32'), recvTopkWeights: part(3, 'f32'), recvX: part(4, 'f32') },
  }
}

/** The hash of all that a rank got in so many replays, each with the inputs of the next turn. */
async function hashOfReplays(one: Rank, turns: readonly Turn[], replays: number): Promise<string> {
  const { rank, buffer, stream } = one
  const sources = turns.map(({ shape, inputs, results }) => {
    const values = results[rank]!.flat()
    const padded = [...values, ...Array<number>(capacity * small.hidden - values.length).fill(0)]
    const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape, stream, 'i32')
    return [x, topkIdx, topkWeights, Tensor.from(padded, [capacity, small.hidden], 'f32', stream.device)] as const
  })
  const read = sources[0]!.map(({ shape, dtype }) => Tensor.zeros(shape, dtype, stream.device))
  const [x, topkIdx, topkWeights, y] = read as [Tensor, Tensor, Tensor, Tensor]
  const { bytes, ...outputs } = outputsOf(small.numTokens[rank]!, stream.device)
  const record = (): void => {
    const options = { topkIdx, topkWeights, numExperts: small.numExperts, stream }
    const got = buffer.dispatchWorstCase(x, options)
    overwrite(outputs.recvX, got.recvX, stream)
    overwrite(outputs.recvTopkIdx, got.recvTopkIdx!, stream)
    overwrite(outputs.recvTopkWeights, got.recvTopkWeights!, stream)
    const { combinedTopkWeights } = buffer.combine(y, got.handle, {
      ...{ stream, topkWeights: got.recvTopkWeights!, out: outputs.combinedX },
    })
    overwrite(outputs.combinedTopkWeights, combinedTopkWeights!, stream)
  }
  const graph = await captureTogether(one, () => Graph.capture(stream, record))
  const journal = Tensor.zeros([batch, bytes.numel], 'u8', stream.device)
  const pages = Array.from({ length: batch }, (_, page) => journal.slice(page, page + 1))
  const hash = createHash('sha256')
  for (let replay = 0; replay < replays; replay += batch) {
    pages.forEach((page, i) => {
      sources[(replay + i) % turns.length]!.forEach((source, at) => overwrite(read[at]!, source, stream))
      graph.launch(stream)
      overwrite(page, bytes, stream)
    })
    const written = await journal.read({ stream })
    pages.forEach((_, i) => {
      const { length } = turns[(replay + i) % turns.length]!.expected[rank]!
      hash.update(written.subarray(i * bytes.numel, i * bytes.numel + length))
    })
  }
  graph.close()
  return hash.digest('hex')
}

test('10,000 iterations under changing inputs give the same bits again, all of them those of the oracle', async () => {
  const replays = 10_000
  const turns = Array.from({ length: 37 }, (_, seed) => turnOf(seed))
  const expected = small.numTokens.map((_, rank) => {
    const hash = createHash('sha256')
    for (let replay = 0; replay < replays; replay++) hash.update(turns[replay % turns.length]!.expected[rank]!)
    return hash.digest('hex')
  })
  const options = { hidden: small.hidden, maxTokensPerRank: 4, maxElementBytes: 4 }
  for (const threads of [1, 2]) {
    await withWorld(3, { ...options, threads: () => threads }, async (ranks) => {
      const hashes = await Promise.all(ranks.map((rank) => hashOfReplays(rank, turns, replays)))
      expect(hashes).toEqual(expected)
    })
  }
}, 240_000)
