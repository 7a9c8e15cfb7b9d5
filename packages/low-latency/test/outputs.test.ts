import { type DType, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import type { LowLatencyDispatchOptions } from '../src/index.js'
import { codeOf, device, numbersOf, type Rank, randomInputs, toTensors, withWorld } from './world.js'

const shape = { numTokens: [3, 2], hidden: 256, topk: 3, numExperts: 5, seed: 4 }
const sizes = { hidden: 256, maxTokensPerRank: 4, maxTopk: 3 }
const expertsOf = (rank: number): number => (rank === 0 ? 3 : 2)
const zeros = (dtype: DType, ...of: number[]): Tensor => Tensor.zeros(of, dtype, device)

/** A dispatch of rank-major rows with weights, or of rows by expert, and memory for all that it writes. */
function callOf({ rank, stream, buffer }: Rank, layout: 'expert-major' | 'rank-major') {
  const { x, topkIdx, topkWeights } = toTensors(randomInputs(shape)[rank]!, shape)
  const [groups, rows] = layout === 'rank-major' ? [2, 4] : [expertsOf(rank), 8]
  const { memory } = zeros('f32', groups, 2, rows)
  const routing = [groups, rows, shape.topk] as const
  const out = {
    packedRecvX: zeros('fp8e4m3', groups, rows, shape.hidden),
    packedRecvXScales: new Tensor({ memory, dtype: 'f32', shape: [groups, rows, 2], strides: [2 * rows, 1, rows] }),
    packedRecvCount: zeros('i32', groups),
    srcInfo: zeros('i32', groups, rows),
    ...(layout === 'expert-major' && { layoutRange: zeros('i64', groups, 2) }),
    ...(layout === 'rank-major' && {
      recvTopkIdx: zeros('i32', ...routing),
      recvTopkWeights: zeros('f32', ...routing),
    }),
  }
  const dispatch = (given: LowLatencyDispatchOptions['out'] = {}, weighted = true) =>
    buffer.lowLatencyDispatch(x, topkIdx, {
      ...{ numExperts: shape.numExperts, layout, stream, out: given },
      ...(weighted && { topkWeights }),
    })
  return { out, dispatch }
}

test.each(['expert-major', 'rank-major'] as const)('all that a dispatch writes can be given, %s', async (layout) => {
  await withWorld(2, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { out, dispatch } = callOf(one, layout)
        const given = dispatch(out)
        const { handle, ...found } = given
        const all = { ...found, ...handle }
        for (const [name, tensor] of Object.entries(out)) expect(all[name as keyof typeof out]).toBe(tensor)
        one.buffer.release(handle)
        const { handle: other, ...expected } = dispatch()
        await one.stream.synchronize()
        const counts = await numbersOf(found.packedRecvCount)
        expect(counts).toEqual(await numbersOf(expected.packedRecvCount))
        expect(counts.some((count) => count > 0)).toBe(true)
        // Rows past the counts are nobody's.
        for (const [mine, theirs] of [
          [found.packedRecvX, expected.packedRecvX],
          [handle.srcInfo, other.srcInfo],
        ] as const) {
          for (const [group, count] of counts.entries()) {
            const rowsOf = async (tensor: Tensor): Promise<number[]> =>
              numbersOf(
                tensor
                  .slice(group, group + 1)
                  .reshape([...tensor.shape.slice(1)])
                  .slice(0, count),
              )
            expect(await rowsOf(mine)).toEqual(await rowsOf(theirs))
          }
        }
        for (const [mine, theirs] of [
          [handle.layoutRange, other.layoutRange],
          [found.recvTopkIdx, expected.recvTopkIdx],
          [found.recvTopkWeights, expected.recvTopkWeights],
        ] as const)
          expect(mine && (await numbersOf(mine))).toEqual(theirs && (await numbersOf(theirs)))
        one.buffer.release(other)
      }),
    )
  })
})

test('what a dispatch does not write, or cannot, is refused, and takes no slot', async () => {
  await withWorld(2, sizes, async (ranks) => {
    for (const one of ranks) {
      const major = callOf(one, 'expert-major')
      const byRank = callOf(one, 'rank-major')
      const wrong = [
        () => major.dispatch({ recvTopkIdx: byRank.out.recvTopkIdx! }),
        () => major.dispatch({ recvTopkWeights: byRank.out.recvTopkWeights! }),
        () => major.dispatch({ srcInfo: byRank.out.srcInfo }),
        () => major.dispatch({ layoutRange: zeros('i32', expertsOf(one.rank), 2) }),
        () => byRank.dispatch({ layoutRange: major.out.layoutRange! }),
        () => byRank.dispatch({ recvTopkWeights: byRank.out.recvTopkWeights! }, false),
        () => byRank.dispatch({ recvTopkIdx: zeros('i64', 2, 4, 3) }),
        () => byRank.dispatch({ srcInfo: zeros('i32', 2, 5) }),
      ]
      for (const call of wrong) expect(codeOf(call)).toBe('ERR_MOE_EP_ARGUMENT')
      expect(one.buffer.freeSlots).toBe(2)
    }
  })
})
