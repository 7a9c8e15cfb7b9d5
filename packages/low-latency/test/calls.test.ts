import { copyTensor, type Event, Graph, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { LowLatencyBuffer, type LowLatencyHandle, reference } from '../src/index.js'
import { bf16, expected, shape, sizes } from './few-tokens.js'
import {
  captureTogether,
  codeOf,
  device,
  failureOf,
  numbersOf,
  overwrite,
  type Rank,
  randomInputs,
  resultsTensor,
  toTensors,
  withWorld,
} from './world.js'

test('two dispatches are in flight, and hooks are called late and in the other order', async () => {
  const [first, second] = [randomInputs(shape), randomInputs({ ...shape, seed: 2 })]
  const answers = [first, second].map((inputs) => expected(inputs, shape.numExperts, shape.hidden))
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const inputs = [first, second].map((all) => toTensors(all[rank]!, shape))
        const calls = inputs.map(({ x, topkIdx }) =>
          buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, returnRecvHook: true }),
        )
        expect(buffer.freeSlots).toBe(0)
        expect(codeOf(() => buffer.lowLatencyDispatch(inputs[0]!.x, inputs[0]!.topkIdx, { ...bf16, stream }))).toBe(
          'ERR_MOE_EP_NO_FREE_SLOT',
        )
        await stream.synchronize()
        calls[1]!.hook!()
        calls[0]!.hook!()
        const combines = [1, 0].map((i) => {
          const { x: _, topkIdx, topkWeights } = inputs[i]!
          const y = resultsTensor(answers[i]!.results[rank]!, calls[i]!.packedRecvX.shape[1]!, shape.hidden)
          const options = { stream, returnRecvHook: true }
          return { i, ...buffer.lowLatencyCombine(y, topkIdx, topkWeights, calls[i]!.handle, options) }
        })
        for (const { hook } of combines.toReversed()) hook!()
        await stream.synchronize()
        for (const { i, combinedX } of combines)
          expect(await numbersOf(combinedX)).toEqual(answers[i]!.combined[rank]!.flat())
        expect(buffer.freeSlots).toBe(2)
      }),
    )
  })
})

test('shapes change from call to call', async () => {
  const shapes = [
    { numTokens: [4, 4, 4], hidden: 16, topk: 1, numExperts: 2, seed: 3 },
    { numTokens: [0, 1, 0], hidden: 32, topk: 2, numExperts: 9, seed: 4 },
    { numTokens: [2, 0, 4], hidden: 8, topk: 2, numExperts: 3, seed: 5 },
  ]
  await withWorld(3, sizes, async (ranks) => {
    for (const changed of [...shapes, ...shapes]) {
      const inputs = randomInputs(changed)
      const { results, combined } = expected(inputs, changed.numExperts, changed.hidden)
      await Promise.all(
        ranks.map(async ({ rank, stream, buffer }) => {
          const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, changed)
          const { numExperts } = changed
          const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts, useFp8: false, stream })
          const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, changed.hidden)
          const { combinedX, event } = buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, { stream })
          await event.synchronize()
          expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
        }),
      )
    }
  })
})

test('an id that is no expert and arguments that differ fail on all ranks alike, and the buffer works on', async () => {
  const inputs = randomInputs(shape)
  const { results, combined } = expected(inputs, shape.numExperts, shape.hidden)
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        const fails = async (ids: Tensor, options: object): Promise<string> => {
          const { handle } = buffer.lowLatencyDispatch(x, ids, { ...bf16, stream, ...options })
          const error = await failureOf(stream.synchronize())
          buffer.release(handle)
          return `${error.code} ${error.message}`
        }
        const wrong = Tensor.from([0, 1, 2, 3, 4, 1, 0, 5], [4, 2], 'i64')
        expect(await fails(rank === 2 ? wrong : topkIdx, {})).toMatch(
          /^ERR_MOE_EP_ARGUMENT .*rank 2, token 3: expert 5 of 5/,
        )
        expect(await fails(topkIdx, rank === 1 ? { topkWeights } : {})).toMatch(
          /^ERR_MOE_EP_MISMATCH .*topkWeights given is 0 on rank 0 and 1 on rank 1/,
        )
        const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream })
        const y = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
        const { combinedX } = buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, { stream })
        await stream.synchronize()
        expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
      }),
    )
  })
})

test('ids that are not those of the dispatch are refused in combine', async () => {
  const inputs = randomInputs({ ...shape, numTokens: [4, 4] })
  // Fewer experts than ranks: placement has nothing to say of other ids.
  await withWorld(2, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkWeights } = toTensors(inputs[rank]!, shape)
        const topkIdx = Tensor.zeros([4, 2], 'i64')
        const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 1, useFp8: false, stream })
        const y = Tensor.zeros(packedRecvX.shape, 'bf16')
        const wide = Tensor.zeros([4, 40], 'i64')
        const weights = Tensor.zeros([4, 40], 'f32')
        expect(codeOf(() => buffer.lowLatencyCombine(y, wide, weights, handle, { stream }))).toBe('ERR_MOE_EP_ARGUMENT')
        const wrong = Tensor.from([0, 0, 0, 0, 0, 7, 0, 0], [4, 2], 'i64')
        buffer.lowLatencyCombine(y, wrong, topkWeights, handle, { stream })
        const error = await failureOf(stream.synchronize())
        expect(`${error.code} ${error.message}`).toMatch(
          new RegExp(`^ERR_MOE_EP_ARGUMENT .*combine: rank ${rank}, token 2: expert 7 of 1`),
        )
        expect(buffer.freeSlots).toBe(2)
      }),
    )
  })
})

test('a rank that does not come is named at the deadline', async () => {
  const inputs = randomInputs(shape)
  await withWorld(3, { ...sizes, timeoutMs: 300 }, async (ranks) => {
    const errors = await Promise.all(
      ranks.slice(0, 2).map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx } = toTensors(inputs[rank]!, shape)
        buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream })
        return failureOf(stream.synchronize())
      }),
    )
    for (const error of errors) {
      expect(error.code).toBe('ERR_MOE_EP_TIMEOUT')
      expect(error.message).toMatch(/low-latency dispatch, slot 0: no messages from rank 2/)
    }
  })
})

test('a handle ends once, and a release without the hook leaves nothing behind', async () => {
  const inputs = randomInputs(shape)
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        const { x, topkIdx, topkWeights } = toTensors(inputs[rank]!, shape)
        for (let i = 0; i < 5; i++) {
          const { handle, hook, packedRecvX } = buffer.lowLatencyDispatch(x, topkIdx, {
            ...{ ...bf16, stream, returnRecvHook: true },
          })
          const y = Tensor.zeros(packedRecvX.shape, 'bf16')
          const combine = (given: LowLatencyHandle) => () =>
            buffer.lowLatencyCombine(y, topkIdx, topkWeights, given, { stream })
          expect(codeOf(combine(handle))).toBe('ERR_MOE_EP_ARGUMENT')
          buffer.release(handle)
          buffer.release(handle)
          expect(codeOf(hook!)).toBe('ERR_MOE_EP_RELEASED')
          expect(codeOf(combine(handle))).toBe('ERR_MOE_EP_RELEASED')
          await stream.synchronize()
          expect(buffer.freeSlots).toBe(2)
        }
      }),
    )
  })
})

test('graphs of 3 and of 2 layers are replayed in turn, with inputs that change', async () => {
  const rounds = [1, 2, 3, 4, 5, 6].map((seed) => randomInputs({ ...shape, seed }))
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async (one) => {
        const { rank, stream, buffer } = one
        const { x, topkIdx, topkWeights } = toTensors(rounds[0]![rank]!, shape)
        const layers = (count: number): { readonly graph: Graph; readonly outs: Tensor[] } => {
          const outs: Tensor[] = []
          const graph = Graph.capture(stream, () => {
            for (let i = 0; i < count; i++) {
              const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, topkWeights })
              outs.push(buffer.lowLatencyCombine(packedRecvX, topkIdx, undefined, handle, { stream }).combinedX)
            }
          })
          return { graph, outs }
        }
        const graphs = await captureTogether(one, () => [layers(3), layers(2)])
        for (const [round, inputs] of rounds.entries()) {
          const input = inputs[rank]!
          overwrite(x, input.x.flat(), stream)
          overwrite(topkIdx, input.topkIdx.flat(), stream)
          overwrite(topkWeights, input.topkWeights.flat(), stream)
          const { graph, outs } = graphs[round % 2]!
          graph.launch(stream)
          await stream.synchronize()
          // Experts that answer with what they got.
          const results = reference
            .dispatch(inputs, shape.numExperts)
            .map((experts) => experts.map((rows) => rows.map((r) => inputs[r.sourceRank]!.x[r.sourceToken]!)))
          const combined = reference.combine(inputs, results, { ...shape, weighted: true })[rank]!.flat()
          for (const out of outs) expect(await numbersOf(out)).toEqual(combined)
        }
      }),
    )
  })
})

test.each([false, true])('dispatch and combine begin after previousEvent; hooks: %s', async (returnRecvHook) => {
  const inputs = randomInputs(shape)
  const { counts, results, combined } = expected(inputs, shape.numExperts, shape.hidden)
  await withWorld(3, sizes, async (ranks) => {
    await Promise.all(
      ranks.map(async ({ rank, stream, buffer }) => {
        await using side = device.createStream({ threads: 1 })
        // All that a call reads is there only when the other stream has got that far.
        const afterAWhile = (copies: readonly (readonly [Tensor, Tensor])[]): Event => {
          side.delay(50_000)
          for (const [from, to] of copies) copyTensor(from, to, { stream: side })
          return side.record()
        }
        const given = toTensors(inputs[rank]!, shape)
        const x = Tensor.zeros(given.x.shape, 'bf16')
        const topkIdx = Tensor.zeros(given.topkIdx.shape, 'i64')
        const topkWeights = Tensor.zeros(given.topkWeights.shape, 'f32')
        const options = { stream, returnRecvHook }
        const { packedRecvX, packedRecvCount, handle, hook } = buffer.lowLatencyDispatch(x, topkIdx, {
          ...{ ...bf16, ...options },
          previousEvent: afterAWhile([
            [given.x, x],
            [given.topkIdx, topkIdx],
          ]),
        })
        hook?.()
        const answers = resultsTensor(results[rank]!, packedRecvX.shape[1]!, shape.hidden)
        const y = Tensor.zeros(answers.shape, 'bf16')
        const { combinedX, hook: home } = buffer.lowLatencyCombine(y, topkIdx, topkWeights, handle, {
          ...options,
          previousEvent: afterAWhile([
            [answers, y],
            [given.topkWeights, topkWeights],
          ]),
        })
        home?.()
        await stream.synchronize()
        expect(await numbersOf(packedRecvCount)).toEqual(counts[rank])
        expect(await numbersOf(combinedX)).toEqual(combined[rank]!.flat())
      }),
    )
  })
})

test('results go where the caller says', async () => {
  const inputs = randomInputs({ ...shape, numTokens: [4] })
  await withWorld(1, sizes, async ([rank]) => {
    const { stream, buffer } = rank as Rank
    const { x, topkIdx, topkWeights } = toTensors(inputs[0]!, shape)
    const packedRecvX = Tensor.empty([shape.numExperts, 4, shape.hidden], 'bf16')
    const packedRecvCount = Tensor.empty([shape.numExperts], 'i32')
    const result = buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, out: { packedRecvX, packedRecvCount } })
    expect(result.packedRecvX).toBe(packedRecvX)
    expect(result.packedRecvCount).toBe(packedRecvCount)
    const out = Tensor.empty([4, shape.hidden], 'bf16')
    expect(buffer.lowLatencyCombine(packedRecvX, topkIdx, topkWeights, result.handle, { stream, out }).combinedX).toBe(
      out,
    )
    await stream.synchronize()
    const wrong = { packedRecvX: Tensor.empty([shape.numExperts, 5, shape.hidden], 'bf16') }
    expect(codeOf(() => buffer.lowLatencyDispatch(x, topkIdx, { ...bf16, stream, out: wrong }))).toBe(
      'ERR_MOE_EP_ARGUMENT',
    )
    expect(buffer.freeSlots).toBe(2)
  })
})

test('what cannot work is refused before anything is sent', async () => {
  await withWorld(1, sizes, async ([rank]) => {
    const { stream, buffer } = rank as Rank
    const x = Tensor.zeros([2, 32], 'bf16')
    const topkIdx = Tensor.zeros([2, 2], 'i64')
    const refused = (change: { x?: Tensor; topkIdx?: Tensor; options?: object }): string =>
      codeOf(() => {
        buffer.lowLatencyDispatch(change.x ?? x, change.topkIdx ?? topkIdx, { ...bf16, stream, ...change.options })
      })
    expect(refused({ x: Tensor.zeros([2, 32], 'f32') })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ x: Tensor.zeros([2, 40], 'bf16') })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ x: Tensor.zeros([2, 12], 'bf16') })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ x: Tensor.zeros([2, 8], 'bf16'), options: { useFp8: true } })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ x: Tensor.zeros([5, 32], 'bf16'), topkIdx: Tensor.zeros([5, 2], 'i64') })).toBe(
      'ERR_MOE_EP_ARGUMENT',
    )
    expect(refused({ topkIdx: Tensor.zeros([2, 3], 'i64') })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ topkIdx: Tensor.zeros([2, 2], 'f32') })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ options: { numExperts: 0 } })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ options: { useUe8m0: true } })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ options: { useFp8: true, useUe8m0: true, roundScale: false } })).toBe('ERR_MOE_EP_ARGUMENT')
    const xGlobalScale = Tensor.zeros([1], 'f32')
    for (const options of [
      { format: 'fp4' },
      { format: 'mxfp8', useFp8: true },
      { format: 'mxfp8', useFp8: false },
      { format: 'nvfp4', useFp8: false, xGlobalScale },
      { format: 'bf16', useFp8: true },
      { format: 'fp8', useFp8: false },
      { format: 'mxfp8', useUe8m0: true },
      { format: 'bf16', roundScale: true },
      { format: 'nvfp4' },
      { format: 'nvfp4', xGlobalScale: Tensor.zeros([2], 'f32') },
      { format: 'nvfp4', xGlobalScale: Tensor.zeros([1], 'bf16') },
      { format: 'mxfp8', xGlobalScale },
      { format: 'mxfp8', out: { packedRecvXScales: Tensor.zeros([shape.numExperts, 4, 1], 'f32') } },
      { format: 'mxfp8', out: { packedRecvX: Tensor.zeros([shape.numExperts, 4, 32], 'bf16') } },
    ])
      expect(refused({ options: { useFp8: undefined, ...options } })).toBe('ERR_MOE_EP_ARGUMENT')
    const narrow = Tensor.zeros([2, 16], 'bf16')
    expect(refused({ x: narrow, options: { useFp8: undefined, format: 'nvfp4', xGlobalScale } })).toBe(
      'ERR_MOE_EP_ARGUMENT',
    )
    expect(refused({ x: Tensor.zeros([2, 24], 'bf16'), options: { useFp8: undefined, format: 'mxfp8' } })).toBe(
      'ERR_MOE_EP_ARGUMENT',
    )
    expect(refused({ options: { slot: 2 } })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(refused({ options: { timeoutMs: 0 } })).toBe('ERR_MOE_EP_ARGUMENT')
    expect(buffer.freeSlots).toBe(2)
    expect(codeOf(() => LowLatencyBuffer.sizeHint({ ...sizes, maxTokensPerRank: 1025 }, 2))).toBe('ERR_MOE_EP_ARGUMENT')
    expect(LowLatencyBuffer.sizeHint(sizes, 2)).toBeGreaterThan(0)
    buffer.close()
    expect(refused({})).toBe('ERR_MOE_EP_RELEASED')
  })
})
