import { type DType, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import {
  applyExpertMap,
  deepGemmBlockShape,
  deepgemmMoePermute,
  deepgemmUnpermuteAndReduce,
  epGather,
  epScatter,
  type EpScatterOptions,
  expertNumTokensRoundUpAndSum,
  permute,
  reference,
  roundUp128,
} from '../src/index.js'
import {
  copyToHost,
  elementRows,
  failure,
  intoZeros,
  matrix,
  onHost,
  randomBits,
  randomNumbers,
  rowBytes,
} from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })

function randomIds(count: number, experts: number, seed: number): number[] {
  return Array.from(randomNumbers(count, seed), (value) => Math.floor(((value + 1) / 2) * experts))
}

/** Ids of `counts[e]` single-slot tokens for each expert, experts taking turns. */
function idsOfCounts(counts: readonly number[]): number[] {
  const rounds = Array.from({ length: Math.max(...counts) }, (_, round) => round)
  return rounds.flatMap((round) => counts.flatMap((count, expert) => (round < count ? [expert] : [])))
}

/** Memory for a scatter; what is not written stays recognisable. */
function scatterOptions(settings: {
  ids: readonly number[]
  topk: number
  x: Tensor
  scales: Tensor
  counts: readonly number[]
  rows: number
  packed?: boolean
}): EpScatterOptions {
  const { ids, topk, x, scales, counts, rows, packed = false } = settings
  const columns = packed ? Math.ceil(scales.shape[1]! / 4) : scales.shape[1]!
  return {
    ...{ recvX: x, recvXScale: scales, packUe8m0: packed },
    recvTopk: Tensor.from(ids, [ids.length / topk, topk], 'i64'),
    numRecvTokensPerExpert: Tensor.from(counts, [counts.length], 'i32'),
    expertStartLoc: Tensor.zeros([counts.length], 'i32'),
    outputTensor: Tensor.zeros([rows, x.shape[1]!], x.dtype),
    outputTensorScale: Tensor.zeros([rows, columns], packed ? 'i32' : scales.dtype),
    mIndices: Tensor.from(Array<number>(rows).fill(-9), [rows], 'i32'),
    outputIndex: Tensor.from(Array<number>(ids.length).fill(-1), [ids.length / topk, topk], 'i32'),
  }
}

describe('epScatter', () => {
  const lists = [
    [2, 3, 1, 2],
    [0, 4, 0, 4],
    [8, 0, 0, 0],
    [1, 2, 3, 4, 5, 6, 7, 8],
    [128, 128, 128, 128],
    [1, 1, 1, 1],
    Array<number>(16).fill(10),
    [200, 50],
    [130, 10, 200],
  ]
  test.each(lists.flatMap((counts) => [128, 224].map((blockE) => [counts, blockE] as const)))(
    'fills whole tiles with the expert for the counts %j and tiles of %i, and nothing behind them',
    async (counts, blockE) => {
      const ids = idsOfCounts(counts)
      const tiles = counts.map((count) => Math.ceil(count / blockE) * blockE)
      const total = tiles.reduce((a, b) => a + b)
      const options = scatterOptions({
        ...{ ids, topk: 1, counts, rows: total + 2 * blockE },
        ...{ x: Tensor.zeros([ids.length, 4], 'fp8e4m3'), scales: Tensor.zeros([ids.length, 1], 'f32') },
      })
      epScatter({ ...options, blockE, blockD: 64, numWarps: 4 })
      const out = await onHost(options)
      const filled = tiles.flatMap((rows, expert) => Array<number>(rows).fill(expert))
      expect([...out.mIndices.data]).toEqual([...filled, ...Array<number>(2 * blockE).fill(-9)])
      const starts = counts.map((_, expert) => tiles.slice(0, expert).reduce((a, b) => a + b, 0))
      expect([...out.expertStartLoc.data]).toEqual(starts.map((start, expert) => start + counts[expert]!))
    },
  )

  test.each<[number, number, number, number, number, boolean, DType]>([
    [4, 8, 1, 128, 128, false, 'fp8e4m3'],
    [4, 16, 2, 256, 128, false, 'bf16'],
    [8, 32, 1, 512, 128, false, 'f16'],
    [8, 64, 2, 256, 128, false, 'f32'],
    [4, 128, 1, 128, 128, false, 'fp8e5m2'],
    [16, 32, 1, 256, 128, false, 'fp8e4m3'],
    [4, 8, 4, 128, 128, false, 'fp8e4m3'],
    [4, 8, 1, 128, 128, true, 'fp8e4m3'],
    [4, 16, 2, 256, 128, true, 'fp8e4m3'],
    [8, 32, 1, 512, 32, true, 'fp8e4m3'],
    [4, 16, 1, 256, 32, true, 'fp8e4m3'],
  ])(
    'moves row and scales of every slot: %i experts, %i tokens, top-%i, hidden %i, groups of %i, packed %s, %s',
    async (experts, tokens, topk, hidden, group, packed, dtype) => {
      const ids = randomIds(tokens * topk, experts, tokens)
      const counts = Array.from({ length: experts }, (_, expert) => ids.filter((id) => id === expert).length)
      const x = randomBits([tokens, hidden], dtype)
      const scales = randomBits([tokens, hidden / group], packed ? 'u8' : 'i32', 3)
      const rows = expertNumTokensRoundUpAndSum(Int32Array.from(counts), 128)
      const options = scatterOptions({ ids, topk, x, scales, counts, rows, packed })
      epScatter(options)
      const out = await onHost(options)
      const [sources, sourceScales] = [rowBytes(x), elementRows(scales)]
      const [moved, movedScales] = [rowBytes(out.outputTensor), elementRows(out.outputTensorScale)]
      const places = out.outputIndex.toNumbers()
      ids.forEach((id, slot) => {
        const [position, token] = [Number(places[slot]), Math.floor(slot / topk)]
        expect(out.mIndices.data[position]).toBe(id)
        expect(moved[position]).toEqual(sources[token])
        const expected = packed ? [...reference.packUe8m0(sourceScales[token]!)] : sourceScales[token]
        expect(movedScales[position]).toEqual(expected)
      })
      expect(new Set(places).size).toBe(ids.length)
    },
  )

  test('skips slots whose expert is elsewhere: 8 experts, the odd ones local', async () => {
    const ids = Array.from({ length: 16 }, (_, token) => token % 8)
    const options = scatterOptions({
      ...{ ids, topk: 1, counts: [2, 2, 2, 2], rows: 512 },
      ...{ x: randomBits([16, 128], 'fp8e4m3'), scales: Tensor.zeros([16, 1], 'f32') },
    })
    epScatter({ ...options, expertMap: Tensor.from([-1, 0, -1, 1, -1, 2, -1, 3], [8], 'i32') })
    const out = await onHost(options)
    const rowOf = (id: number, round: number): number => (id % 2 === 0 ? -1 : 64 * (id - 1) + round)
    expect([...out.outputIndex.data]).toEqual(ids.map((id, token) => rowOf(id, Math.floor(token / 8))))
  })

  test('writes scales into column-major memory', async () => {
    const options = scatterOptions({
      ...{ ids: [1, 0, 1], topk: 1, counts: [1, 2], rows: 256 },
      ...{ x: randomBits([3, 128], 'fp8e4m3'), scales: randomBits([3, 2], 'f32') },
    })
    const { memory } = options.outputTensorScale
    const columns = new Tensor({ memory, dtype: 'f32', shape: [256, 2], strides: [1, 256] })
    epScatter({ ...options, outputTensorScale: columns })
    const [moved, sources] = [elementRows(await copyToHost(columns)), elementRows(options.recvXScale)]
    expect([moved[128], moved[0], moved[129]]).toEqual(sources)
  })

  test('refuses a number of rows that is no multiple of the tile, and counts that are too small', async () => {
    const settings = { ids: [0, 0], topk: 1, x: Tensor.zeros([2, 4], 'u8'), scales: Tensor.zeros([2, 1], 'f32') }
    expect(() => epScatter(scatterOptions({ ...settings, counts: [2], rows: 100 }))).toThrow(refused)
    epScatter(scatterOptions({ ...settings, counts: [1], rows: 128 }))
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT' })
    epScatter(scatterOptions({ ...settings, counts: [129], rows: 128 }))
    const message = expect.stringContaining('128 rows, but 256 are needed')
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', message })
  })
})

describe('deepgemmMoePermute and deepgemmUnpermuteAndReduce', () => {
  const [tokens, topk, experts, hidden] = [37, 3, 5, 256]
  const ids = randomIds(tokens * topk, experts, 2)
  const counts = Int32Array.from({ length: experts }, (_, expert) => ids.filter((id) => id === expert).length)
  const topkIds = Tensor.from(ids, [tokens, topk], 'i64')
  const aq = randomBits([tokens, hidden], 'fp8e4m3')
  const aqScale = randomBits([tokens, 2], 'f32', 4)
  const meta = { expertNumTokens: Tensor.from(counts, [experts], 'i32'), expertNumTokensCpu: counts }

  test.each([
    ['without metadata', undefined, 128 * 6],
    ['with device counts', { expertNumTokens: meta.expertNumTokens }, 128 * 6],
    ['with host counts', meta, 128 * 5],
  ])('give what permute gives, %s', async (_, expertTokensMeta, rows) => {
    const options = { aq, aqScale, topkIds, localNumExperts: experts, ...(expertTokensMeta && { expertTokensMeta }) }
    const actual = await onHost(deepgemmMoePermute(options))
    const expected = reference.permute(rowBytes(aq), {
      ...{ topkIdx: matrix(ids, topk), numLocalExperts: experts, fill: 'expert', capacity: rows },
      scales: rowBytes(aqScale),
    })
    expect(actual.aqOut.shape).toEqual([rows, hidden])
    expect(rowBytes(actual.aqOut)).toEqual(expected.rows.map((row) => row ?? new Uint8Array(hidden)))
    expect(rowBytes(actual.aqScaleOut)).toEqual(expected.scales.map((row) => row ?? new Uint8Array(8)))
    expect([...actual.expertIds.data]).toEqual(expected.expertIds)
    expect([...actual.invPerm.data]).toEqual(expected.inversePermutation.flat())
  })

  test('take any alignment, packed scales in columns, and the memory of the caller', async () => {
    const exponents = randomBits([tokens, 6], 'u8')
    const alignment = 224
    const aqOut = Tensor.zeros([expertNumTokensRoundUpAndSum(counts, alignment), hidden], 'fp8e4m3')
    const options = { aq, aqScale: exponents, packUe8m0: true, topkIds, localNumExperts: experts, alignment }
    const permuted = deepgemmMoePermute({ ...options, scaleLayout: 'column', aqOut, expertTokensMeta: meta })
    expect(permuted.aqOut).toBe(aqOut)
    const out = await onHost(permuted)
    expect(out.aqScaleOut).toMatchObject({ dtype: 'i32', shape: [1120, 2], strides: [1, 1120] })
    const words = elementRows(out.aqScaleOut)
    ids.forEach((_, slot) => {
      const row = elementRows(exponents)[Math.floor(slot / topk)]!
      expect(words[Number(out.invPerm.data[slot])]).toEqual([...reference.packUe8m0(row)])
    })
  })

  test('bring the weighted sums back', async () => {
    const x = Tensor.from(randomNumbers(tokens * hidden), [tokens, hidden], 'bf16')
    const { rows, inversePermutation } = intoZeros((out) =>
      permute(x, { topkIdx: topkIds, numLocalExperts: experts, ...out }),
    )
    const topkWeights = Tensor.from(randomNumbers(tokens * topk, 8), [tokens, topk], 'f32')
    const expertMap = Tensor.from([0, -1, 2, 3, 4], [experts], 'i32')
    const [first, second] = [Tensor.zeros([tokens, hidden], 'f32'), Tensor.zeros([tokens, hidden], 'f32')]
    const ours = { a: rows, topkIds, topkWeights, invPerm: inversePermutation, expertMap, output: first }
    deepgemmUnpermuteAndReduce(ours)
    const gather = { inputTensor: rows, recvTopkIds: topkIds, recvTopkWeight: topkWeights, expertMap }
    epGather({ ...gather, inputIndex: inversePermutation, outputTensor: second, blockD: 1024, numWarps: 2 })
    const host = await onHost({ rows, topkWeights, inversePermutation, first, second })
    const expected = reference.unpermuteAndReduce(matrix(host.rows.toNumbers(), hidden), {
      ...{ topkIdx: matrix(ids, topk), topkWeights: matrix(host.topkWeights.toNumbers(), topk), hidden },
      ...{ inversePermutation: matrix(host.inversePermutation.toNumbers(), topk), expertMap: [0, -1, 2, 3, 4] },
    })
    expect([...host.first.toNumbers()]).toEqual(expected.flat())
    expect(host.second.data).toEqual(host.first.data)
  })

  test.each([
    ['an aqOut of another number of rows', { aqOut: Tensor.zeros([640, hidden], 'fp8e4m3') }],
    ['an aqOut of another dtype', { aqOut: Tensor.zeros([768, hidden], 'u8') }],
    ['ids of floats', { topkIds: Tensor.zeros([tokens, topk], 'f32') }],
    ['rows of three dimensions', { aq: Tensor.zeros([1, tokens, hidden], 'u8') }],
    ['no scales', { aqScale: undefined as unknown as Tensor }],
  ])('refuse %s', (_, options) => {
    expect(() => deepgemmMoePermute({ aq, aqScale, topkIds, localNumExperts: experts, ...options })).toThrow(refused)
  })
})

describe('the small ones', () => {
  test('deepGemmBlockShape is the tile of SM90, the same object each time', () => {
    expect(deepGemmBlockShape()).toEqual([128, 128])
    expect(deepGemmBlockShape()).toBe(deepGemmBlockShape())
  })

  test('roundUp128', () => {
    expect([0, 1, 127, 128, 129, 2 ** 40 + 1].map(roundUp128)).toEqual([0, 128, 128, 128, 256, 2 ** 40 + 128])
    expect(() => roundUp128(-1)).toThrow(refused)
  })

  test('expertNumTokensRoundUpAndSum', () => {
    expect(expertNumTokensRoundUpAndSum(Int32Array.of(1, 0, 129), 128)).toBe(384)
    expect(expertNumTokensRoundUpAndSum(Int32Array.of(1, 0, 225), 224)).toBe(672)
    expect(expertNumTokensRoundUpAndSum(Int32Array.of(2 ** 31 - 1, 2 ** 31 - 1), 2)).toBe(2 ** 32)
    expect(() => expertNumTokensRoundUpAndSum(Int32Array.of(1, -2), 4)).toThrow(refused)
    expect(() => expertNumTokensRoundUpAndSum(Int32Array.of(1), 0)).toThrow(refused)
  })

  test('applyExpertMap', () => {
    const map = Int32Array.of(-1, 0, 1)
    expect([-1, 0, 1, 2].map((id) => applyExpertMap(id, map))).toEqual([-1, -1, 0, 1])
    expect(() => applyExpertMap(3, map)).toThrow(refused)
    expect(() => applyExpertMap(-2, map)).toThrow(refused)
  })
})
