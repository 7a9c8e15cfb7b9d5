import { copyTensor, Graph, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { reference } from '../src/index.js'
import { device, type Input, type Rank, randomInputs, toTensors, withWorld } from './world.js'

const shape = { numTokens: [4, 0, 3], hidden: 32, topk: 3, numExperts: 5, seed: 0 }
const sizes = { hidden: shape.hidden, maxTokensPerRank: 4, maxTopk: shape.topk }
/** Inputs that take turns; no multiple of the number of graphs, so that each graph meets all of them. */
const turns = 5
/** Replays whose results are looked at together: nobody waits between them. */
const batch = 50

/** What so many layers make of these rows, where experts answer with what they got. */
function afterLayers(inputs: readonly Input[], layers: number): number[][][] {
  let rows = inputs.map(({ x }) => x)
  for (let layer = 0; layer < layers; layer++) {
    const current = inputs.map((input, rank) => ({ ...input, x: rows[rank]! }))
    const results = reference
      .dispatch(current, shape.numExperts)
      .map((experts) =>
        experts.map((received) => received.map(({ sourceRank, sourceToken }) => rows[sourceRank]![sourceToken]!)),
      )
    rows = reference.combine(current, results, { ...shape, weighted: true })
  }
  return rows.map((ofRank) => ofRank.map((row) => [...row]))
}

interface Inputs {
  readonly x: Tensor
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
}

/** Layers one after the other, in turn in both slots, each on what the one before gave. */
function captureLayers({ buffer, stream }: Rank, inputs: Inputs, layers: number): { graph: Graph; out: Tensor } {
  const outs = Array.from({ length: layers }, () => Tensor.zeros(inputs.x.shape, 'bf16', device))
  const { topkIdx, topkWeights } = inputs
  const graph = Graph.capture(stream, () => {
    let x = inputs.x
    outs.forEach((out, layer) => {
      const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
        ...{ numExperts: shape.numExperts, useFp8: false, stream, topkWeights, slot: layer % 2 },
      })
      buffer.lowLatencyCombine(packedRecvX, topkIdx, undefined, handle, { stream, out })
      x = out
    })
  })
  return { graph, out: outs.at(-1)! }
}

// Slots count their calls where commands run: after an odd number of layers the slots are in other states than one another, and a
// graph that takes turns with another finds what that one left.
test.each([
  ['one graph of 3 layers', [3], 4000],
  ['graphs of 3 and of 2 layers in turn', [3, 2], 6000],
] as const)('%s, replayed with other inputs every time', { timeout: 240_000 }, async (_, layersOfGraphs, replays) => {
  const inputs = Array.from({ length: turns }, (_, seed) => randomInputs({ ...shape, seed }))
  const expected = layersOfGraphs.map((layers) => inputs.map((ofTurn) => afterLayers(ofTurn, layers)))
  await withWorld(3, sizes, async (ranks) => {
    const wrong = await Promise.all(
      ranks.map(async (rank) => {
        const { stream } = rank
        const sources = inputs.map((ofTurn) => toTensors(ofTurn[rank.rank]!, shape))
        const current = toTensors(inputs[0]![rank.rank]!, shape)
        const graphs = layersOfGraphs.map((layers) => captureLayers(rank, current, layers))
        const rows = shape.numTokens[rank.rank]!
        const results = Tensor.zeros([batch * rows, shape.hidden], 'bf16', device)
        const different: number[] = []
        for (let begin = 0; begin < replays; begin += batch) {
          for (let replay = begin; replay < begin + batch; replay++) {
            const source = sources[replay % turns]!
            copyTensor(source.x, current.x, { stream })
            copyTensor(source.topkIdx, current.topkIdx, { stream })
            copyTensor(source.topkWeights, current.topkWeights, { stream })
            const { graph, out } = graphs[replay % graphs.length]!
            graph.launch(stream)
            const at = (replay - begin) * rows
            copyTensor(out, results.slice(at, at + rows), { stream })
          }
          await stream.synchronize()
          const sums = await results.readNumbers()
          for (let replay = begin; replay < begin + batch; replay++) {
            const right = expected[replay % graphs.length]![replay % turns]![rank.rank]!.flat()
            const first = (replay - begin) * right.length
            if (!right.every((value, i) => Object.is(value, sums[first + i]))) different.push(replay)
          }
        }
        for (const { graph } of graphs) graph.close()
        return different
      }),
    )
    expect(wrong).toEqual([[], [], []])
  })
})
