import { decode, encode, Graph, type Stream, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { reference } from '../src/index.js'
import {
  captureTogether,
  type InputShape,
  randomInputs,
  randomNumbers,
  rowsOf,
  toTensors,
  withWorld,
  numbersOf,
  overwrite,
} from './world.js'

const shape: InputShape = { numTokens: [5, 0, 7], hidden: 24, topk: 3, numExperts: 7, dtype: 'bf16', seed: 11 }
const sizes = { hidden: 24, maxTokensPerRank: 8 }
const inputs = randomInputs(shape)

function randomTensor(
  random: () => number,
  dims: readonly number[],
  dtype: 'bf16' | 'f32',
  { device }: Stream,
): Tensor {
  const values = Array.from({ length: dims.reduce((a, b) => a * b, 1) }, () => random() - 0.5)
  return Tensor.copyOf(encode(dtype, values), dims, dtype, device)
}

describe('combine', () => {
  test('reduces weights over ranks and adds up to two biases before it rounds', async () => {
    await withWorld(3, sizes, async (ranks) => {
      const sent = ranks.map(({ rank, stream }) => {
        const random = randomNumbers(rank)
        const tokens = shape.numTokens[rank]!
        return [randomTensor(random, [tokens, 24], 'bf16', stream), randomTensor(random, [tokens, 24], 'bf16', stream)]
      })
      await Promise.all(
        ranks.map(async ({ rank, buffer, stream }) => {
          const { x, ...routing } = toTensors(inputs[rank]!, shape, stream)
          const options = { ...routing, numExperts: shape.numExperts, stream }
          const first = await buffer.dispatch(x, options)
          const plain = buffer.combine(first.recvX, first.handle, { stream })
          const second = await buffer.dispatch(x, options)
          const biased = buffer.combine(second.recvX, second.handle, {
            ...{ stream, bias: sent[rank]!, topkWeights: second.recvTopkWeights! },
          })
          await stream.synchronize()
          // Each slot's weight was sent to one rank, the others hold 0 for it: their sum is the weight again.
          const expectedWeights = inputs[rank]!.topkWeights.map((weights, token) =>
            weights.map((weight, slot) => (inputs[rank]!.topkIdx[token]![slot]! < 0 ? 0 : weight)),
          )
          expect(await rowsOf(biased.combinedTopkWeights!)).toEqual(expectedWeights)
          expect(plain.combinedTopkWeights).toBeUndefined()
          const [bias0, bias1] = await Promise.all(sent[rank]!.map(numbersOf))
          const copies = inputs[rank]!.topkIdx.map((ids) => new Set(ids.filter((id) => id >= 0).map(ownerOf)).size)
          const expected = inputs[rank]!.x.flatMap((row, token) =>
            row.map((value, i) => {
              let sum = copies[token] === 0 ? 0 : value
              for (let copy = 1; copy < copies[token]!; copy++) sum = Math.fround(sum + value)
              const at = token * 24 + i
              return Math.fround(Math.fround(sum + bias0![at]!) + bias1![at]!)
            }),
          )
          expect(await numbersOf(biased.combinedX)).toEqual(Array.from(decode('bf16', encode('bf16', expected))))
        }),
      )
    })
  })
})

/** Linear placement of 7 experts on 3 ranks: 3, 2, 2. */
const ownerOf = (expert: number): number => (expert < 3 ? 0 : expert < 5 ? 1 : 2)

const received = reference.dispatch(inputs, shape.numExperts)

/** For each token of a rank the f32 sum of what all ranks have for its rows. */
function sumsAtHome(home: number, values: readonly (readonly (readonly number[])[])[]): number[][] {
  const columns = values.flat()[0]!.length
  return Array.from({ length: shape.numTokens[home]! }, (_, token) => {
    const own = received.flatMap((arrived, at) =>
      values[at]!.filter((_, row) => arrived[row]!.sourceRank === home && arrived[row]!.sourceToken === token),
    )
    return Array.from({ length: columns }, (_, i) => own.reduce((sum, row) => Math.fround(sum + row[i]!), 0))
  })
}

describe('dispatch', () => {
  test('at worst-case size can be captured, and replays with changed inputs', async () => {
    await withWorld(3, sizes, async (ranks) => {
      await Promise.all(
        ranks.map(async (one) => {
          const { rank, buffer, stream } = one
          const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape, stream)
          let combinedX: Tensor | undefined
          let recvTopkIdx: Tensor | undefined
          const record = (): void => {
            const got = buffer.dispatchWorstCase(x, { topkIdx, topkWeights, numExperts: shape.numExperts, stream })
            expect(got.recvX.shape).toEqual([24, 24])
            recvTopkIdx = got.recvTopkIdx
            combinedX = buffer.combine(got.recvX, got.handle, { stream }).combinedX
          }
          const graph = await captureTogether(one, () => Graph.capture(stream, record))
          for (let seed = 1; seed <= 20; seed++) {
            const next = randomInputs({ ...shape, seed })
            const { x: newX, topkIdx: newIdx, topkWeights: newWeights } = toTensors(next[rank]!, shape, stream)
            overwrite(x, newX, stream)
            overwrite(topkIdx, newIdx, stream)
            overwrite(topkWeights, newWeights, stream)
            graph.launch(stream)
            await stream.synchronize()
            const rows = next.reduce(
              (sum, input) =>
                sum + input.topkIdx.filter((ids) => ids.some((id) => id >= 0 && ownerOf(id) === rank)).length,
              0,
            )
            expect(
              (await rowsOf(recvTopkIdx!))
                .slice(rows)
                .flat()
                .every((id) => id === -1),
            ).toBe(true)
            const expected = await buffer.dispatch(newX, {
              topkIdx: newIdx,
              topkWeights: newWeights,
              numExperts: shape.numExperts,
              stream,
            })
            expect(expected.recvX.shape[0]).toBe(rows)
            const { combinedX: again } = buffer.combine(expected.recvX, expected.handle, { stream })
            await stream.synchronize()
            expect(await rowsOf(combinedX!)).toEqual(await rowsOf(again))
          }
        }),
      )
    })
  })

  test('is refused inside a capture, before a slot is taken', async () => {
    await withWorld(1, sizes, async ([only]) => {
      const { buffer, stream } = only!
      const { x, topkIdx } = toTensors(inputs[0]!, shape, stream)
      let refused: Promise<unknown> | undefined
      const graph = Graph.capture(stream, () => {
        refused = buffer.dispatch(x, { topkIdx, numExperts: shape.numExperts, stream }).catch((error: unknown) => error)
      })
      expect(await refused).toMatchObject({ code: 'ERR_MOE_EP_CAPTURE' })
      expect(graph.size).toBe(0)
      expect(buffer.freeSlots).toBe(2)
    })
  })

  test('copies into memory of the caller, which outlives the lease; too little of it is refused with the count', async () => {
    await withWorld(3, sizes, async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, buffer, stream }) => {
          const { x, ...routing } = toTensors(inputs[rank]!, shape, stream)
          const options = { ...routing, numExperts: shape.numExperts, stream }
          const { device } = stream
          const out = {
            recvX: Tensor.zeros([24, 24], 'bf16', device),
            recvTopkIdx: Tensor.zeros([24, 3], 'i64', device),
          }
          const copied = await buffer.dispatch(x, { ...options, out })
          const plain = await buffer.dispatch(x, options)
          await stream.synchronize()
          const expected = await rowsOf(plain.recvX)
          copied.handle.lease.release(copied.event)
          plain.handle.lease.release()
          expect(copied.recvX.memory).toBe(out.recvX.memory)
          expect(await rowsOf(copied.recvX)).toEqual(expected)
          expect(await rowsOf(copied.recvTopkIdx!)).toEqual(await rowsOf(plain.recvTopkIdx!))
          const small = buffer.dispatch(x, { ...options, out: { recvX: Tensor.zeros([0, 24], 'bf16', device) } })
          const outcome = await small.catch((error: unknown) => error)
          if (expected.length > 0) expect(outcome).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY' })
          await stream.synchronize()
          expect(buffer.freeSlots).toBe(expected.length > 0 ? 2 : 1)
        }),
      )
    })
  })

  test('and combine on different streams follow one another on a slot', async () => {
    await withWorld(2, { ...sizes, maxInFlight: 1 }, async (ranks) => {
      const two: InputShape = { ...shape, numTokens: [6, 6] }
      const rounds = Array.from({ length: 20 }, (_, seed) => randomInputs({ ...two, seed }))
      await Promise.all(
        ranks.map(async ({ rank, buffer, stream, group }) => {
          const other = stream.device.createStream()
          for (const round of rounds) {
            const { x, topkIdx } = toTensors(round[rank]!, two, stream)
            const got = await buffer.dispatch(x, { topkIdx, numExperts: two.numExperts, stream })
            other.delay(300)
            const { combinedX, event } = buffer.combine(got.recvX, got.handle, { stream: other })
            const next = await buffer.dispatch(x, { topkIdx, numExperts: two.numExperts, stream })
            await event.synchronize()
            next.handle.lease.release(stream.record())
            const copies = round[rank]!.topkIdx.map(
              (ids) => new Set(ids.filter((id) => id >= 0).map((id) => (id < 4 ? 0 : 1))).size,
            )
            expect(await rowsOf(combinedX)).toEqual(
              round[rank]!.x.map((row, token) => row.map((value) => value * copies[token]! + 0)),
            )
          }
          await stream.synchronize()
          await other.close()
          await group.barrier()
        }),
      )
    })
  })

  test('of the gradient of a combine is the backward pass of that combine', async () => {
    await withWorld(3, sizes, async (ranks) => {
      await Promise.all(
        ranks.map(async ({ rank, buffer, stream }) => {
          const { x, ...routing } = toTensors(inputs[rank]!, shape, stream)
          const forward = await buffer.dispatch(x, { ...routing, numExperts: shape.numExperts, stream })
          const { plan } = forward.handle
          buffer.combine(forward.recvX, forward.handle, { stream })
          // d(combinedX) goes to every row that was summed: a dispatch with the same plan.
          const gradient = randomTensor(randomNumbers(rank + 50), [shape.numTokens[rank]!, 24], 'bf16', stream)
          const backward = await buffer.dispatch(gradient, { plan, stream })
          await stream.synchronize()
          const ends = (await numbersOf(plan.rankPrefixMatrix)).filter((_, i) => i % 3 === rank)
          const sourceTokens = await numbersOf(backward.handle.recvSrcIdx)
          const gradientsOfRanks = [0, 1, 2].map((source) =>
            rowsOf(randomTensor(randomNumbers(source + 50), [shape.numTokens[source]!, 24], 'bf16', stream)),
          )
          const gradients = await Promise.all(gradientsOfRanks)
          const rows = await rowsOf(backward.recvX)
          rows.forEach((values, row) => {
            const source = ends.findIndex((end) => row < end)
            expect(values).toEqual(gradients[source]![sourceTokens[row]!])
          })
          // d(recvX) goes home as a sum: a combine with the same handle, weights' gradients along with it.
          const ofRows = received.map((arrived, at) =>
            randomTensor(randomNumbers(at + 70), [arrived.length, 24], 'bf16', stream),
          )
          const ofWeights = received.map((arrived, at) =>
            randomTensor(randomNumbers(at + 90), [arrived.length, 3], 'f32', stream),
          )
          const { combinedX, combinedTopkWeights } = buffer.combine(ofRows[rank]!, backward.handle, {
            ...{ stream, topkWeights: ofWeights[rank]! },
          })
          await stream.synchronize()
          const sums = sumsAtHome(rank, await Promise.all(ofRows.map(rowsOf)))
          const rounded = sums.map((row) => Array.from(decode('bf16', encode('bf16', row))))
          expect(await rowsOf(combinedX)).toEqual(rounded)
          const weightSums = sumsAtHome(rank, await Promise.all(ofWeights.map(rowsOf)))
          expect(await rowsOf(combinedTopkWeights!)).toEqual(weightSums)
        }),
      )
    })
  })
})
