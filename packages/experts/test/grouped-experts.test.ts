import { decode, type DType, encode, getDevice, MoeEpError, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import { afterAll, describe, expect, it } from 'vitest'
import {
  type ExpertEngineFactory,
  type ExpertsArguments,
  GroupedExperts,
  onnxEngines,
  referenceEngines,
  referenceExpert,
} from '../src/index.js'
import { randomValues, relativeError } from './random.js'

const stream = getDevice('cpu').createStream({ threads: 1 })
afterAll(() => stream.close())

const hidden = 24
const intermediate = 10
const numExperts = 5

interface Case {
  /** [M][topk]. */
  readonly ids: readonly (readonly number[])[]
  readonly dtype?: DType
  readonly weightDtype?: DType
  readonly idDtype?: 'i32' | 'i64'
  /** Global to local id; the ids are global then. */
  readonly map?: readonly number[]
  readonly withCounts?: boolean
}

const rounded = (dtype: DType, values: Float32Array): Float32Array =>
  decode(dtype, encode(dtype, values)) as Float32Array

/** Arguments for a case, and the output that a plain loop over tokens and slots gives. */
function build({ ids, dtype = 'bf16', weightDtype = 'f32', idDtype = 'i32', map, withCounts = false }: Case) {
  const rows = ids.length
  const topk = ids[0]?.length ?? 2
  const x = rounded(dtype, randomValues(rows * hidden, 1))
  const w13 = rounded(weightDtype, randomValues(numExperts * 2 * intermediate * hidden, 2))
  const w2 = rounded(weightDtype, randomValues(numExperts * hidden * intermediate, 3))
  const topkWeights = randomValues(rows * topk, 4)
  const localOf = (id: number): number => (id < 0 ? -1 : map === undefined ? id : map[id]!)
  const expected = new Float32Array(rows * hidden)
  for (const [token, slots] of ids.entries()) {
    for (const [slot, id] of slots.entries()) {
      const local = localOf(id)
      if (local < 0) continue
      const y = rounded(
        dtype,
        referenceExpert({
          ...{ hidden, intermediate, x: x.subarray(token * hidden, (token + 1) * hidden) },
          w13: w13.subarray(local * 2 * intermediate * hidden, (local + 1) * 2 * intermediate * hidden),
          w2: w2.subarray(local * hidden * intermediate, (local + 1) * hidden * intermediate),
        }),
      )
      // Both stores into f32 memory round.
      const weighted = y.map((value) => topkWeights[token * topk + slot]! * value)
      for (let i = 0; i < hidden; i++) expected[token * hidden + i]! += weighted[i]!
    }
  }
  const counts = Int32Array.from(
    { length: numExperts },
    (_, expert) => ids.flat().filter((id) => localOf(id) === expert).length,
  )
  const args: ExpertsArguments = {
    output: Tensor.zeros([rows, hidden], dtype),
    hiddenStates: Tensor.from(x, [rows, hidden], dtype),
    weights: {
      w13: Tensor.from(w13, [numExperts, 2 * intermediate, hidden], weightDtype),
      w2: Tensor.from(w2, [numExperts, hidden, intermediate], weightDtype),
    },
    topkIdx: Tensor.from(ids.flat(), [rows, topk], idDtype),
    topkWeights: Tensor.from(topkWeights, [rows, topk], 'f32'),
    ...(map && { expertMap: Tensor.from(map, [map.length], 'i32') }),
    ...(withCounts && { tokens: { numTokens: Tensor.from(counts, [numExperts], 'i32'), numTokensHost: counts } }),
    stream,
  }
  return { args, expected: rounded(dtype, expected) }
}

async function run(experts: GroupedExperts, args: ExpertsArguments): Promise<Float32Array> {
  await experts.apply(args)
  await stream.synchronize()
  return args.output.toNumbers() as Float32Array
}

/** Experts for one test. */
async function withExperts(
  engines: ExpertEngineFactory,
  use: (experts: GroupedExperts) => Promise<void>,
): Promise<void> {
  const experts = new GroupedExperts(engines)
  try {
    await use(experts)
  } finally {
    await experts.close()
  }
}

async function failureOf(promise: Promise<unknown>): Promise<MoeEpError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!MoeEpError.isInstance(error)) throw new Error(`expected a MoeEpError, got ${String(error)}`)
  return error
}

const ids = [
  [0, 3],
  [3, 1],
  [-1, 0],
  [-1, -1],
  [3, 3],
]
const cases: [string, Case][] = [
  ['bf16 rows, f32 weights', { ids }],
  ['bf16 weights', { ids, weightDtype: 'bf16' }],
  ['f16 weights and rows', { ids, dtype: 'f16', weightDtype: 'f16' }],
  ['f32 rows', { ids, dtype: 'f32' }],
  ['ids of 64 bits', { ids, idDtype: 'i64' }],
  ['counts on the host', { ids, withCounts: true }],
  [
    'an expert map over global ids',
    {
      ids: [
        [7, 2],
        [0, 9],
        [8, -1],
        [1, 1],
      ],
      map: [-1, 4, -1, -1, -1, -1, -1, 0, 2, 3],
    },
  ],
  [
    'an expert map and host counts',
    {
      ids: [
        [0, 1],
        [2, 3],
      ],
      map: [-1, 1, -1, 0],
      withCounts: true,
    },
  ],
  ['all rows to one expert', { ids: Array.from({ length: 40 }, () => [4]) }],
  ['no local expert at all', { ids: [[-1], [-1]] }],
  ['no rows', { ids: [] }],
]

describe('GroupedExperts', () => {
  it.each(cases)('with the reference engine equals a loop over slots bit for bit: %s', (_, one) =>
    withExperts(referenceEngines(), async (experts) => {
      const { args, expected } = build(one)
      expect(await run(experts, args)).toEqual(expected)
    }),
  )

  it.each(cases)('with the ONNX engine agrees: %s', (_, one) =>
    withExperts(onnxEngines({ threads: 1 }), async (experts) => {
      const { args, expected } = build(one)
      const actual = await run(experts, args)
      if (expected.some((value) => value !== 0)) expect(relativeError(actual, expected)).toBeLessThan(8e-3)
      else expect(actual).toEqual(expected)
    }),
  )

  it('leaves its inputs as they were', () =>
    withExperts(referenceEngines(), async (experts) => {
      const { args } = build({ ids })
      const inputs = [args.hiddenStates, args.topkIdx, args.topkWeights, args.weights.w13, args.weights.w2]
      const before = inputs.map((tensor) => Array.from(tensor.toNumbers()))
      await run(experts, args)
      expect(inputs.map((tensor) => Array.from(tensor.toNumbers()))).toEqual(before)
    }))

  it('waits for work that the stream still does on its inputs', () =>
    withExperts(referenceEngines(), async (experts) => {
      const { args, expected } = build({ ids })
      const { shape } = args.hiddenStates
      const rows = shape[0]!
      const late = Tensor.zeros(shape, 'bf16')
      stream.delay(20_000)
      // A sum of one row with weight 1 is a copy, which the stream makes in its own time.
      unpermuteAndReduce(args.hiddenStates, {
        topkIdx: Tensor.zeros([rows, 1], 'i32'),
        topkWeights: Tensor.from(new Float32Array(rows).fill(1), [rows, 1], 'f32'),
        inversePermutation: Tensor.from([...Array(rows).keys()], [rows, 1], 'i32'),
        ...{ out: late, stream },
      })
      expect(await run(experts, { ...args, hiddenStates: late })).toEqual(expected)
    }))

  it('makes one engine for each pair of sizes, asks again for one that failed, and closes them all', async () => {
    const made: string[] = []
    let closed = 0
    let failures = 1
    const experts = new GroupedExperts(async (sizes) => {
      if (failures-- > 0) throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', 'not installed')
      made.push(`${sizes.hidden}x${sizes.intermediate}`)
      const engine = await referenceEngines()(sizes)
      return { run: (...operands) => engine.run(...operands), close: async () => void closed++ }
    })
    const other: ExpertsArguments = {
      ...build({ ids }).args,
      weights: {
        w13: Tensor.zeros([numExperts, 8, hidden], 'bf16'),
        w2: Tensor.zeros([numExperts, hidden, 4], 'bf16'),
      },
    }
    expect((await failureOf(experts.apply(build({ ids }).args))).code).toBe('ERR_MOE_EP_UNSUPPORTED')
    for (let i = 0; i < 3; i++) await run(experts, build({ ids }).args)
    expect(await run(experts, other)).toEqual(new Float32Array(ids.length * hidden))
    expect(made).toEqual(['24x10', '24x4'])
    await experts.close()
    await experts.close()
    expect(closed).toBe(2)
    expect((await failureOf(experts.apply(other))).code).toBe('ERR_MOE_EP_RELEASED')
  })

  it('stops between experts when its signal fires, and can go on afterwards', async () => {
    const controller = new AbortController()
    let runs = 0
    const experts = new GroupedExperts(async (sizes) => {
      const engine = await referenceEngines()(sizes)
      return {
        ...engine,
        run: (...operands) => {
          if (runs++ === 1) controller.abort(new Error('enough'))
          return engine.run(...operands)
        },
      }
    })
    const { args, expected } = build({ ids })
    const error = await failureOf(experts.apply({ ...args, signal: controller.signal }))
    expect(error.code).toBe('ERR_MOE_EP_ABORTED')
    expect(error.cause).toMatchObject({ message: 'enough' })
    expect(runs).toBe(2)
    expect((await failureOf(experts.apply({ ...args, signal: controller.signal }))).code).toBe('ERR_MOE_EP_ABORTED')
    expect(await run(experts, args)).toEqual(expected)
    await experts.close()
  })

  it('passes on what its engine and its stream fail with', async () => {
    const failing = new GroupedExperts(async () => ({
      run: () => Promise.reject(new MoeEpError('ERR_MOE_EP_INTERNAL', 'the engine broke')),
      close: async () => {},
    }))
    expect((await failureOf(failing.apply(build({ ids }).args))).message).toBe('the engine broke')
    await withExperts(referenceEngines(), async (experts) => {
      const { args } = build({ ids })
      const topkIdx = Tensor.from([0, 1, 2, 3, 4, numExperts, 0, 1, 2, 3], [5, 2], 'i32')
      expect((await failureOf(experts.apply({ ...args, topkIdx }))).code).toBe('ERR_MOE_EP_ARGUMENT')
    })
  })

  const wrong: [string, string, (args: ExpertsArguments) => Partial<ExpertsArguments>][] = [
    ['rows of fp8', 'hiddenStates', () => ({ hiddenStates: Tensor.zeros([5, hidden], 'fp8e4m3') })],
    ['an output of another dtype', 'output', () => ({ output: Tensor.zeros([5, hidden], 'f32') })],
    ['an output of other rows', 'output', () => ({ output: Tensor.zeros([4, hidden], 'bf16') })],
    [
      'w13 of another hidden size',
      'w13',
      ({ weights }) => ({ weights: { ...weights, w13: Tensor.zeros([5, 20, 8], 'f32') } }),
    ],
    [
      'w13 with an odd number of rows',
      'w13',
      ({ weights }) => ({ weights: { ...weights, w13: Tensor.zeros([5, 21, hidden], 'f32') } }),
    ],
    [
      'w2 of another dtype',
      'w2',
      ({ weights }) => ({ weights: { ...weights, w2: Tensor.zeros([5, hidden, 10], 'bf16') } }),
    ],
    [
      'w2 of fewer experts',
      'w2',
      ({ weights }) => ({ weights: { ...weights, w2: Tensor.zeros([4, hidden, 10], 'f32') } }),
    ],
    ['ids of other rows', 'topkIdx', () => ({ topkIdx: Tensor.zeros([4, 2], 'i32') })],
    ['ids of floats', 'topkIdx', () => ({ topkIdx: Tensor.zeros([5, 2], 'f32') })],
    ['weights of other slots', 'topkWeights', () => ({ topkWeights: Tensor.zeros([5, 3], 'f32') })],
    [
      'counts of another number of experts',
      'expertNumTokensHost',
      () => ({
        tokens: { numTokens: Tensor.zeros([4], 'i32'), numTokensHost: new Int32Array(4) },
      }),
    ],
  ]

  it.each(wrong)('refuses %s', (_, argument, change) =>
    withExperts(referenceEngines(), async (experts) => {
      const { args } = build({ ids })
      const error = await failureOf(experts.apply({ ...args, ...change(args) }))
      expect([error.code, error.details['argument']]).toEqual(['ERR_MOE_EP_ARGUMENT', argument])
    }),
  )
})
