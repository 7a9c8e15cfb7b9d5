import { copyTensor, Graph, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { captureTogether, device, type Rank, randomNumbers, withWorld } from './world.js'

const tokens = 8
const hidden = 64
const numExperts = 6
const topk = 3

interface Input {
  readonly x: Uint16Array
  readonly ids: Int32Array
  /** Layers multiply a row by the number of ranks that have its experts; all is whole numbers. */
  readonly copies: readonly number[]
}

/** bf16 of small whole numbers. */
const wholeNumbers = [0x3f80, 0x4000, 0x4040, 0xbf80]

function inputOf(rank: number, turn: number, numRanks: number): Input {
  const random = randomNumbers(100 * turn + rank)
  const ids = Int32Array.from({ length: tokens * topk }, () =>
    random() < 0.1 ? -1 : Math.floor(random() * numExperts),
  )
  const perRank = numExperts / numRanks
  const copies = Array.from({ length: tokens }, (_, token) => {
    const own = ids.subarray(token * topk, (token + 1) * topk)
    return new Set(Array.from(own.filter((id) => id >= 0)).map((id) => Math.floor(id / perRank))).size
  })
  const x = Uint16Array.from({ length: tokens * hidden }, () => wholeNumbers[Math.floor(random() * 4)]!)
  return { x, ids, copies }
}

/** What so many layers make of a row's number. */
function expectedOf({ x, copies }: Input, layers: number): number[] {
  const valueOf = (bits: number): number => [1, 2, 3, -1][wholeNumbers.indexOf(bits)]!
  return Array.from(x, (bits, i) => {
    const value = valueOf(bits) * copies[Math.floor(i / hidden)]! ** layers
    return Object.is(value, -0) ? 0 : value
  })
}

// Slots remember calls by their numbers, so that nothing is cleaned between replays: an odd number of layers, and graphs that take
// turns on the same slots, find whatever an earlier replay left.
test('two graphs of an odd and an even number of layers, in turn, 10,000 replays with other inputs every time', async () => {
  const replays = 10_000
  const turns = 5
  await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: topk, maxExperts: numExperts }, async (ranks) => {
    const ends = await Promise.all(
      ranks.map(async (one) => {
        const inputs = Array.from({ length: turns }, (_, turn) => inputOf(one.rank, turn, ranks.length))
        const { change, ...read } = changingTensors(one, inputs)
        const graphs = await captureTogether(one, () => [3, 2].map((layers) => captureLayers(one, read, layers)))
        const expected = [3, 2].map((layers) => inputs.map((input) => expectedOf(input, layers)))
        const wrong: number[] = []
        for (let replay = 0; replay < replays; replay++) {
          const turn = replay % turns
          const { graph, out } = graphs[replay % 2]!
          change(turn)
          graph.launch(one.stream)
          // Most replays follow one another without a wait.
          if (replay % 50 > 5 && replay < replays - 10) continue
          const sums = await out.readNumbers({ stream: one.stream })
          const right = expected[replay % 2]![turn]!
          if (!right.every((value, i) => value === sums[i]! + 0)) wrong.push(replay)
        }
        for (const { graph } of graphs) graph.close()
        return wrong
      }),
    )
    expect(ends).toEqual(ranks.map(() => []))
  })
}, 240_000)

test('one graph of an odd number of layers, alone: the sums of all 3,000 replays', async () => {
  await withWorld(3, { hidden, maxTokensPerRank: tokens, maxTopk: topk, maxExperts: numExperts }, async (ranks) => {
    const ends = await Promise.all(
      ranks.map(async (one) => {
        const inputs = Array.from({ length: 7 }, (_, turn) => inputOf(one.rank, turn, ranks.length))
        const expected = inputs.map((input) => expectedOf(input, 3))
        const { change, ...read } = changingTensors(one, inputs)
        const { graph, out } = await captureTogether(one, () => captureLayers(one, read, 3))
        const wrong: number[] = []
        for (let replay = 0; replay < 3_000; replay++) {
          change(replay % 7)
          graph.launch(one.stream)
          const sums = await out.readNumbers({ stream: one.stream })
          if (!expected[replay % 7]!.every((value, i) => value === sums[i]! + 0)) wrong.push(replay)
        }
        graph.close()
        return wrong
      }),
    )
    expect(ends).toEqual(ranks.map(() => []))
  })
}, 240_000)

interface ReadTensors {
  readonly x: Tensor
  readonly topkIdx: Tensor
}

/** What graphs read, and what enqueues the change to the input of a turn. */
function changingTensors(
  { stream }: Rank,
  inputs: readonly Input[],
): ReadTensors & { readonly change: (turn: number) => void } {
  const sources = inputs.map(({ x, ids }) => ({
    x: Tensor.copyOf(x, [tokens, hidden], 'bf16', device),
    ids: Tensor.copyOf(ids, [tokens, topk], 'i32', device),
  }))
  const x = Tensor.zeros([tokens, hidden], 'bf16', device)
  const topkIdx = Tensor.zeros([tokens, topk], 'i32', device)
  const change = (turn: number): void => {
    copyTensor(sources[turn]!.x, x, { stream })
    copyTensor(sources[turn]!.ids, topkIdx, { stream })
  }
  return { x, topkIdx, change }
}

/** Dispatch of worst-case size, experts that give back what they got, combine: so many times over, in turn in both slots. */
function captureLayers(
  { buffer, stream }: Rank,
  { x, topkIdx }: ReadTensors,
  layers: number,
): { readonly graph: Graph; readonly out: Tensor } {
  const outs = Array.from({ length: layers }, () => Tensor.zeros([tokens, hidden], 'bf16', device))
  const graph = Graph.capture(stream, () => {
    let rows = x
    outs.forEach((out, layer) => {
      const got = buffer.dispatchWorstCase(rows, { topkIdx, numExperts, stream, slot: layer % 2 })
      buffer.combine(buffer.combineInput(got.handle), got.handle, { stream, out })
      rows = out
    })
  })
  return { graph, out: outs.at(-1)! }
}
