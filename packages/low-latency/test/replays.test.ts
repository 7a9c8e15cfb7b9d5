import { copyTensor, decode, Graph, type Stream, Tensor } from '@moe-ep/core'
import { defaultGroupSize, dequantizePerTokenGroup, reference as quant } from '@moe-ep/quant'
import { expect, test } from 'vitest'
import { type LowLatencyProtocol, type RecvLayout, reference } from '../src/index.js'
import { captureTogether, device, type Input, type Rank, randomInputs, toTensors, withWorld } from './world.js'

const shape = { numTokens: [4, 0, 3], hidden: 32, topk: 3, numExperts: 5, seed: 0 }
const sizes = { hidden: shape.hidden, maxTokensPerRank: 4, maxTopk: shape.topk }
/** Inputs that take turns; no multiple of the number of graphs, so that each graph meets all of them. */
const turns = 5
/** Replays whose results are looked at together: nobody waits between them. */
const batch = 50

/** How layers are called. */
interface Kind {
  readonly useFp8?: boolean
  readonly layout?: RecvLayout
  readonly protocol?: LowLatencyProtocol
  /** Weights at the dispatch. @default true */
  readonly weighted?: boolean
  readonly useLogfmt?: boolean
}

/** What experts make of a row: what they got, in bf16. */
function answerOf(row: readonly number[], { useFp8 = false }: Kind): readonly number[] {
  if (!useFp8) return row
  const { values, scales } = reference.castRow(row, { format: 'fp8' })
  const options = { hidden: shape.hidden, groupSize: defaultGroupSize, dtype: 'bf16' } as const
  return Array.from(decode('bf16', quant.dequantizePerTokenGroup(Array.from(values, Number), scales!, options)))
}

/** What so many layers make of these rows. */
function afterLayers(inputs: readonly Input[], layers: number, kind: Kind): number[][][] {
  const { layout, weighted = true, useLogfmt = false } = kind
  const { numExperts } = shape
  const options = { ...shape, weighted, useLogfmt }
  let rows: readonly (readonly (readonly number[])[])[] = inputs.map(({ x }) => x)
  for (let layer = 0; layer < layers; layer++) {
    const answers = rows.map((ofRank) => ofRank.map((row) => answerOf(row, kind)))
    if (layout === 'rank-major') {
      const results = reference
        .dispatchRankMajor(inputs, numExperts)
        .map((sources) =>
          sources.map((received, source) => received.map(({ sourceToken }) => answers[source]![sourceToken]!)),
        )
      rows = reference.combineRankMajor(inputs, results, options)
    } else {
      const results = reference
        .dispatch(inputs, numExperts)
        .map((experts) =>
          experts.map((received) => received.map(({ sourceRank, sourceToken }) => answers[sourceRank]![sourceToken]!)),
        )
      rows = reference.combine(inputs, results, options)
    }
  }
  return rows.map((ofRank) => ofRank.map((row) => [...row]))
}

interface Inputs {
  readonly x: Tensor
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
}

/** Layers one after the other, in turn in both slots, each on what the one before gave. */
function captureLayers(
  { buffer, stream }: Rank,
  inputs: Inputs,
  layers: number,
  kind: Kind,
): { graph: Graph; out: Tensor } {
  const { useFp8 = false, layout = 'expert-major', weighted = true, useLogfmt = false } = kind
  const outs = Array.from({ length: layers }, () => Tensor.zeros(inputs.x.shape, 'bf16', device))
  const { topkIdx, topkWeights } = inputs
  const late = weighted || layout === 'rank-major' ? undefined : topkWeights
  const graph = Graph.capture(stream, () => {
    let x = inputs.x
    outs.forEach((out, layer) => {
      const { packedRecvX, packedRecvXScales, handle } = buffer.lowLatencyDispatch(x, topkIdx, {
        ...{ numExperts: shape.numExperts, useFp8, layout, stream, slot: layer % 2, ...(weighted && { topkWeights }) },
      })
      const y = packedRecvXScales ? dequantized(packedRecvX, packedRecvXScales, stream) : packedRecvX
      buffer.lowLatencyCombine(y, topkIdx, late, handle, { stream, out, useLogfmt })
      x = out
    })
  })
  return { graph, out: outs.at(-1)! }
}

/** Rows of one group each, in bf16. */
function dequantized(values: Tensor, scales: Tensor, stream: Stream): Tensor {
  const [blocks, rows, hidden] = values.shape as [number, number, number]
  const out = Tensor.empty(values.shape, 'bf16', device)
  const flat = (tensor: Tensor, columns: number): Tensor => tensor.reshape([blocks * rows, columns])
  const options = { dtype: 'bf16', stream, out: flat(out, hidden) } as const
  dequantizePerTokenGroup(flat(values, hidden), flat(scales, 1), options)
  return out
}

/** Replays graphs of so many layers in turn, with other inputs every time, and compares what every replay gave. */
async function expectReplays(layersOfGraphs: readonly number[], replays: number, kind: Kind = {}): Promise<void> {
  const inputs = Array.from({ length: turns }, (_, seed) => randomInputs({ ...shape, seed }))
  const expected = layersOfGraphs.map((layers) => inputs.map((ofTurn) => afterLayers(ofTurn, layers, kind)))
  await withWorld(3, { ...sizes, protocol: kind.protocol ?? 'rank' }, async (ranks) => {
    const wrong = await Promise.all(
      ranks.map(async (rank) => {
        const { stream } = rank
        const sources = inputs.map((ofTurn) => toTensors(ofTurn[rank.rank]!, shape))
        const current = toTensors(inputs[0]![rank.rank]!, shape)
        const graphs = await captureTogether(rank, () =>
          layersOfGraphs.map((layers) => captureLayers(rank, current, layers, kind)),
        )
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
}

// Slots count their calls where commands run: after an odd number of layers the slots are in other states than one another, and a
// graph that takes turns with another finds what that one left.
test.each([
  ['one graph of 3 layers', [3], 4000],
  ['graphs of 3 and of 2 layers in turn', [3, 2], 6000],
] as const)('%s, replayed with other inputs every time', { timeout: 240_000 }, (_, layersOfGraphs, replays) =>
  expectReplays(layersOfGraphs, replays),
)

test.each<[string, Kind]>([
  ['fp8', { useFp8: true }],
  ['fp8, weights at the combine', { useFp8: true, weighted: false }],
  ['weights at the combine', { weighted: false }],
  ["protocol 'expert'", { protocol: 'expert', weighted: false }],
  ["fp8 and protocol 'expert'", { useFp8: true, protocol: 'expert', weighted: false }],
  ['rank-major', { layout: 'rank-major' }],
  ['rank-major without weights, fp8', { useFp8: true, layout: 'rank-major', weighted: false }],
  ['sums that come home as LogFMT', { useLogfmt: true }],
  ['rows that come home as LogFMT', { weighted: false, useLogfmt: true }],
  ['rank-major, home as LogFMT', { layout: 'rank-major', useLogfmt: true }],
])('%s: graphs of 3 and of 2 layers in turn', { timeout: 120_000 }, (_, kind) => expectReplays([3, 2], 500, kind))
