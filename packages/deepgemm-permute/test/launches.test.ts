import { Graph, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { moePermute, permute, permuteMasked, unpermuteAndReduce } from '../src/index.js'
import { device, randomBits } from './support.js'

const [topk, numLocalExperts, hidden] = [8, 32, 256]

// 2048 slots are the most that a GPU takes with one launch.
const sizes = [
  [1, 1],
  [2048 / topk, 1],
  [2048 / topk + 1, 2],
] as const
const kinds = [
  'bf16',
  'fp8 with scales of 16 bytes',
  'fp8 with scales of 8 bytes',
  'fp8 with scales column by column',
  'fp8 with scales to be packed',
] as const

test.each(sizes.flatMap(([tokens, launches]) => kinds.map((kind) => [tokens, kind, launches] as const)))(
  '%d tokens of %s: %d launches of a GPU, with counts or without, there and back',
  async (tokens, kind, launches) => {
    await using stream = device.createStream()
    const ids = Array.from({ length: tokens * topk }, (_, i) => (i * 7) % numLocalExperts)
    const topkIdx = Tensor.from(ids, [tokens, topk], 'i32')
    const x = randomBits([tokens, hidden], kind === 'bf16' ? 'bf16' : 'fp8e4m3')
    const scales = {
      bf16: {},
      'fp8 with scales of 16 bytes': { scales: randomBits([tokens, 4], 'f32') },
      'fp8 with scales of 8 bytes': { scales: randomBits([tokens, 2], 'f32') },
      'fp8 with scales column by column': { scales: randomBits([tokens, 2], 'f32'), scaleLayout: 'column' as const },
      'fp8 with scales to be packed': {
        scales: randomBits([tokens, 8], 'u8'),
        packScales: true,
        scaleLayout: 'column' as const,
      },
    }[kind]
    const counts = Array.from({ length: numLocalExperts }, (_, expert) => ids.filter((id) => id === expert).length)
    const options = { topkIdx, numLocalExperts, ...scales, stream }
    const counted = { ...options, expertNumTokens: Tensor.from(counts, [numLocalExperts], 'i32') }
    const permuted = permute(x, options)
    const masked = permuteMasked(x, { ...options, maxTokens: tokens })
    const expertRows = Tensor.zeros([permuted.rows.shape[0]!, hidden], 'bf16')
    const { inversePermutation } = permuted
    const topkWeights = Tensor.zeros([tokens, topk], 'f32', device)
    const out = Tensor.empty([tokens, hidden], 'bf16', device)
    const recorded: Record<string, () => unknown> = {
      permute: () => permute(x, { ...options, out: permuted }),
      'permute with counts': () => permute(x, { ...counted, out: permuted }),
      'permute into an earlier result': () =>
        permute(x, { ...options, expertNumTokens: permuted.expertNumTokens, out: permuted }),
      permuteMasked: () => permuteMasked(x, { ...options, maxTokens: tokens, out: masked }),
      moePermute: () => moePermute(x, options),
      unpermuteAndReduce: () =>
        unpermuteAndReduce(expertRows, { topkIdx, topkWeights, inversePermutation, out, stream }),
    }
    for (const [name, body] of Object.entries(recorded)) {
      using graph = Graph.capture(stream, () => void body())
      expect([name, graph.operations]).toEqual([name, device.kind === 'cuda' ? launches : 1])
    }
  },
)
