import { createHash } from 'node:crypto'
import { Tensor } from '@moe-ep/core'
import { dequantizeMxfp8, dequantizeNvfp4, dequantizePerTokenGroup } from '@moe-ep/quant'
import { describe, expect, test } from 'vitest'
import type { LowLatencyDispatchOptions } from '../src/index.js'
import { numbersOf, type Rank, randomInputs, toTensors, withWorld } from './world.js'
import { repeats } from '../../../tooling/vitest/repeats.js'

const shape = { numTokens: [8, 5, 0, 8], hidden: 256, topk: 4, numExperts: 12, seed: 0 }
const rows = 4 * 8

/** DeepEP's measure: 1 - 2 sum(xy) / sum(xx + yy), in f64. */
function difference(x: ArrayLike<number>, y: ArrayLike<number>): number {
  let [products, squares] = [0, 0]
  for (let i = 0; i < x.length; i++) {
    products += x[i]! * y[i]!
    squares += x[i]! ** 2 + y[i]! ** 2
  }
  return squares === 0 ? 0 : 1 - (2 * products) / squares
}

/** Inputs are below 2. */
const globalScale = (): Tensor => Tensor.from([(448 * 6) / 2], [1], 'f32')

/** Experts that answer with what they got, as bf16. */
async function answers(packedRecvX: Tensor, scales: Tensor | undefined, { stream }: Rank): Promise<Tensor> {
  if (scales === undefined) return packedRecvX
  const [experts] = packedRecvX.shape as [number]
  if (scales.dtype === 'e8m0' || scales.dtype === 'fp8e4m3') {
    const out = Tensor.empty(packedRecvX.shape, 'bf16')
    const flat = (tensor: Tensor): Tensor => tensor.reshape([experts * rows, tensor.shape[2]!])
    const options = { dtype: 'bf16', stream, out: flat(out) } as const
    if (scales.dtype === 'e8m0') dequantizeMxfp8(flat(packedRecvX), flat(scales), options)
    else dequantizeNvfp4(flat(packedRecvX), flat(scales), globalScale(), options)
    return out
  }
  const y = Tensor.empty(packedRecvX.shape, 'bf16')
  for (let expert = 0; expert < experts; expert++) {
    const ofExpert = <T extends Tensor>(tensor: T): Tensor => tensor.slice(expert, expert + 1)
    const { memory, dtype, strides, byteOffset } = ofExpert(scales)
    const columns = new Tensor({
      ...{ memory, dtype, byteOffset, shape: scales.shape.slice(1), strides: strides.slice(1) },
    })
    const values = ofExpert(packedRecvX).reshape([rows, shape.hidden])
    const out = ofExpert(y).reshape([rows, shape.hidden])
    dequantizePerTokenGroup(values, columns, { dtype: 'bf16', stream, out })
  }
  return y
}

const cases: readonly [string, () => Partial<LowLatencyDispatchOptions>, number, boolean?][] = [
  ['bf16', () => ({ format: 'bf16' }), 1e-5],
  // Codes of a few binades lie within 0.4 % of numbers, most far nearer.
  ['bf16, home as LogFMT-10', () => ({ format: 'bf16' }), 2e-5, true],
  ['fp8', () => ({}), 9e-4],
  ['fp8 with packed scales', () => ({ useUe8m0: true }), 9e-4],
  ['mxfp8', () => ({ format: 'mxfp8' }), 2e-3],
  // A step of e2m1 is up to a third of a number, so that half of it is far more than all others' errors.
  ['nvfp4', () => ({ format: 'nvfp4', xGlobalScale: globalScale() }), 7e-3],
]

// Weights at the dispatch round twice, the sum of each rank and that of all, and meet the same bounds.
describe.each([
  ['weights at the combine', 'rank', false, 20],
  ['weights at the dispatch', 'rank', true, 5],
  ["protocol 'expert'", 'expert', false, 5],
] as const)('%s', (_, protocol, weighted, numRepeats) => {
  test.each(cases)(
    '%s: sums are near those of exact arithmetic, and the same in every repeat',
    async (_, optionsOf, bound, useLogfmt = false) => {
      await withWorld(4, { hidden: shape.hidden, maxTokensPerRank: 8, maxTopk: 4, protocol }, async (ranks) => {
        for (let seed = 0; seed < repeats(20); seed++) {
          const inputs = randomInputs({ ...shape, seed })
          const oneRank = async (rank: Rank): Promise<{ readonly hash: string; readonly error: number }> => {
            const { buffer, stream } = rank
            const input = inputs[rank.rank]!
            const { x, topkIdx, topkWeights } = toTensors(input, shape)
            const result = buffer.lowLatencyDispatch(x, topkIdx, {
              ...{ numExperts: shape.numExperts, stream, ...optionsOf(), ...(weighted && { topkWeights }) },
            })
            await result.event.synchronize()
            const y = await answers(result.packedRecvX, result.packedRecvXScales, rank)
            const weights = weighted ? undefined : topkWeights
            const { combinedX, event } = buffer.lowLatencyCombine(y, topkIdx, weights, result.handle, {
              ...{ stream, useLogfmt },
            })
            await event.synchronize()
            const exact = input.x.flatMap((values, token) => {
              const chosen = input.topkIdx[token]!.map((id, slot) => (id < 0 ? 0 : input.topkWeights[token]![slot]!))
              const weight = chosen.reduce((sum, w) => sum + w, 0)
              return values.map((value) => value * weight)
            })
            const hash = createHash('sha256')
              .update((await combinedX.read()) as Uint16Array)
              .digest('hex')
            return { hash, error: difference(await numbersOf(combinedX), exact) }
          }
          const repeats = []
          for (let repeat = 0; repeat < numRepeats; repeat++) repeats.push(await Promise.all(ranks.map(oneRank)))
          for (const results of repeats) {
            expect(results.map(({ hash }) => hash)).toEqual(repeats[0]!.map(({ hash }) => hash))
            for (const { error } of results) expect(error).toBeLessThan(bound)
          }
        }
      })
    },
  )
})
