import { copyTensor, type DType, Graph, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { computeAlignedM, permute, type Permuted, reference } from '../src/index.js'
import {
  device,
  failure,
  firstDifference,
  hostOf,
  matrix,
  onHost,
  optionsOf,
  randomBits,
  randomNumbers,
  routings,
  rowBytes,
} from './support.js'

const dtypesOfRows = fc.constantFrom<DType>('bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8')

/** Compares every output, byte for byte; rows that the reference leaves open must be zero. */
function expectEqual(
  actual: Permuted,
  expected: reference.ReferencePermuted<Uint8Array, Uint8Array | undefined>,
): void {
  const rowsOf = (tensor: Tensor, rows: (Uint8Array | undefined)[]): Uint8Array[] => {
    const zero = new Uint8Array(tensor.shape[0] === 0 ? 0 : tensor.byteLength / tensor.shape[0]!)
    return rows.map((row) => row ?? zero)
  }
  expect(firstDifference(rowBytes(actual.rows), rowsOf(actual.rows, expected.rows))).toBeUndefined()
  if (actual.scales !== undefined)
    expect(firstDifference(rowBytes(actual.scales), rowsOf(actual.scales, expected.scales))).toBeUndefined()
  expect(firstDifference([Array.from(actual.expertIds.data, Number)], [expected.expertIds])).toBeUndefined()
  expect([...actual.inversePermutation.data]).toEqual(expected.inversePermutation.flat())
  expect([...actual.expertStart.toNumbers()]).toEqual(expected.expertStart)
  expect([...actual.expertEnd.data]).toEqual(expected.expertEnd)
  expect(actual.expertNumTokens.data).toEqual(expected.expertNumTokens)
}

/** Routing of `counts[e]` single-slot tokens to each expert, experts taking turns. */
function idsOfCounts(counts: readonly number[]): number[] {
  const rounds = Array.from({ length: Math.max(...counts) }, (_, round) => round)
  return rounds.flatMap((round) => counts.flatMap((count, expert) => (round < count ? [expert] : [])))
}

describe('permute', () => {
  test('equals the reference on any routing, dtype, hidden size and alignment', async () => {
    const shapes = fc.record({
      dtype: dtypesOfRows,
      idDtype: fc.constantFrom('i32' as const, 'i64' as const),
      hidden: fc.constantFrom(1, 7, 8, 33, 128, 300),
      groups: fc.constantFrom(undefined, 1, 3),
      alignment: fc.constantFrom(1, 3, 16, 128, 224),
      fill: fc.constantFrom(-1 as const, 'expert' as const, 'tile' as const),
      counts: fc.constantFrom('none', 'device', 'host', 'both'),
    })
    await fc.assert(
      fc.asyncProperty(
        routings,
        shapes,
        async (routing, { dtype, idDtype, hidden, groups, alignment, fill, counts }) => {
          const options = optionsOf(routing, idDtype)
          const numTokens = routing.topkIdx.length
          const x = randomBits([numTokens, hidden], dtype)
          const scales = groups === undefined ? undefined : randomBits([numTokens, groups], 'f32', 2)
          const expertNumTokens = reference.countExpertNumTokens(routing.topkIdx, options.reference)
          const host = counts === 'host' || counts === 'both'
          const size = { numTokens, topk: routing.topk, numLocalExperts: routing.numLocalExperts, alignment }
          const actual = await onHost(
            permute(x, {
              ...options.ours,
              alignment,
              fill,
              ...(scales && { scales }),
              ...(host && { expertNumTokensHost: expertNumTokens.slice() }),
              ...((counts === 'device' || counts === 'both') && {
                expertNumTokens: Tensor.copyOf(expertNumTokens.slice(), [routing.numLocalExperts], 'i32'),
              }),
            }),
          )
          const bound = numTokens === 0 ? 0 : computeAlignedM(size)
          const capacity = host ? computeAlignedM({ ...size, expertNumTokens }) : bound
          expect(actual.rows.shape).toEqual([capacity, hidden])
          const expected = reference.permute(rowBytes(x), {
            ...options.reference,
            alignment,
            fill,
            capacity,
            ...(scales && { scales: rowBytes(scales) }),
          })
          expect(expected.rows).toHaveLength(capacity)
          expectEqual(actual, expected)
        },
      ),
    )
  })

  test.each([
    [[2, 3, 1, 2]],
    [[0, 4, 0, 4]],
    [[8, 0, 0, 0]],
    [[1, 2, 3, 4, 5, 6, 7, 8]],
    [[128, 128, 128, 128]],
    [[1, 1, 1, 1]],
    [Array<number>(16).fill(10)],
    [[200, 50]],
    [[130, 10, 200]],
  ])('marks the rows of the counts %j with their expert, padding with -1 or the expert', async (counts) => {
    const ids = idsOfCounts(counts)
    const numLocalExperts = counts.length
    const topkIdx = Tensor.from(ids, [ids.length, 1], 'i32')
    const x = Tensor.zeros([ids.length, 8], 'u8')
    const expertNumTokensHost = Int32Array.from(counts)
    const marked = await onHost(permute(x, { topkIdx, numLocalExperts, expertNumTokensHost }))
    const filled = await onHost(permute(x, { topkIdx, numLocalExperts, expertNumTokensHost, fill: 'expert' }))
    const tiles = counts.map((count) => Math.ceil(count / 128) * 128)
    const expected = counts.flatMap((count, expert) =>
      Array.from({ length: tiles[expert]! }, (_, row) => (row < count ? expert : -1)),
    )
    expect([...marked.expertIds.data]).toEqual(expected)
    expect([...filled.expertIds.data]).toEqual(tiles.flatMap((rows, expert) => Array<number>(rows).fill(expert)))
    expect([...marked.expertStart.toNumbers()]).toEqual(
      counts.map((_, e) => tiles.slice(0, e).reduce((a, b) => a + b, 0)),
    )
  })

  test.each([
    [4, 8, 1, 128, 128],
    [4, 16, 2, 256, 128],
    [8, 32, 1, 512, 128],
    [8, 64, 2, 256, 128],
    [4, 128, 1, 128, 128],
    [16, 32, 1, 256, 128],
    [4, 8, 4, 128, 128],
    [8, 32, 1, 512, 32],
    [4, 16, 1, 256, 32],
  ])(
    'moves row and scales of every slot: %i experts, %i tokens, top-%i, hidden %i, groups of %i',
    async (experts, tokens, topk, hidden, group) => {
      const ids = Array.from(randomNumbers(tokens * topk, experts), (value) => Math.floor(((value + 1) / 2) * experts))
      const x = randomBits([tokens, hidden], 'fp8e4m3')
      const scales = randomBits([tokens, hidden / group], 'f32', 3)
      const topkIdx = Tensor.from(ids, [tokens, topk], 'i64')
      const out = await onHost(permute(x, { scales, topkIdx, numLocalExperts: experts }))
      const [sources, sourceScales] = [rowBytes(x), rowBytes(scales)]
      const [rows, rowScales] = [rowBytes(out.rows), rowBytes(out.scales!)]
      ids.forEach((id, slot) => {
        const position = Number(out.inversePermutation.data[slot])
        expect(out.expertIds.data[position]).toBe(id)
        expect(rows[position]).toEqual(sources[Math.floor(slot / topk)])
        expect(rowScales[position]).toEqual(sourceScales[Math.floor(slot / topk)])
      })
      expect(new Set(out.inversePermutation.toNumbers()).size).toBe(ids.length)
    },
  )

  test.each([
    [600, 3000],
    [1500, 6000],
    [5000, 7000],
    [7000, 8000],
    [9000, 30_000],
    [30_000, 9000],
  ])('keeps the order of slots: %i experts, %i slots', async (numLocalExperts, slots) => {
    const ids = Array.from(randomNumbers(slots, slots), (value) =>
      Math.max(-1, Math.floor(((value + 0.9) / 2) * numLocalExperts)),
    )
    const topkIdx = Tensor.from(ids, [slots / 2, 2], 'i64')
    const options = { topkIdx, numLocalExperts, alignment: 1 }
    const out = await onHost(permute(randomBits([slots / 2, 16], 'fp8e4m3'), options))
    const next = new Int32Array(numLocalExperts + 1)
    for (const id of ids) if (id >= 0) next[id + 1]!++
    for (let expert = 0; expert < numLocalExperts; expert++) next[expert + 1]! += next[expert]!
    expect([...out.inversePermutation.data].map(Number)).toEqual(ids.map((id) => (id < 0 ? -1 : next[id]!++)))
  })

  test('has no rows without slots, of however many experts', async () => {
    for (const numLocalExperts of [4, 600]) {
      const topkIdx = Tensor.zeros([5, 0], 'i32')
      const [x, scales] = [randomBits([5, 160], 'fp8e4m3'), randomBits([5, 2], 'f32')]
      const out = await onHost(permute(x, { scales, topkIdx, numLocalExperts, scaleLayout: 'column' }))
      expect(Array.from(out.expertNumTokens.data, Number)).toEqual(new Array(numLocalExperts).fill(0))
      expect(out.inversePermutation.shape).toEqual([5, 0])
    }
  })

  test('skips slots whose expert is elsewhere: 8 experts, the odd ones local', async () => {
    const ids = Array.from({ length: 16 }, (_, token) => token % 8)
    const expertMap = Tensor.from([-1, 0, -1, 1, -1, 2, -1, 3], [8], 'i32')
    const out = await onHost(
      permute(randomBits([16, 128], 'bf16'), {
        topkIdx: Tensor.from(ids, [16, 1], 'i32'),
        numLocalExperts: 4,
        expertMap,
      }),
    )
    const rowOf = (id: number, round: number): number => (id % 2 === 0 ? -1 : 128 * ((id - 1) / 2) + round)
    expect([...out.inversePermutation.data]).toEqual(ids.map((id, token) => rowOf(id, Math.floor(token / 8))))
    expect([...out.expertNumTokens.data]).toEqual([2, 2, 2, 2])
  })

  test.each([
    ['bf16', 2880],
    ['fp8e4m3', 7168],
    ['f32', 2561],
  ] as const)('copies %s rows of hidden %i that are large enough to go past the caches', async (dtype, hidden) => {
    const [tokens, topk, experts] = [300, 8, 32]
    const ids = Array.from(randomNumbers(tokens * topk, 5), (value) => Math.floor(((value + 1) / 2) * experts))
    const x = randomBits([tokens, hidden], dtype)
    const out = await onHost(
      permute(x, {
        topkIdx: Tensor.from(ids, [tokens, topk], 'i32'),
        numLocalExperts: experts,
        alignment: 16,
      }),
    )
    const capacity = out.rows.shape[0]!
    const expected = reference.permute(
      Array.from({ length: tokens }, (_, token) => token),
      { topkIdx: matrix(ids, topk), numLocalExperts: experts, alignment: 16, capacity },
    )
    const [sources, rows] = [rowBytes(x), rowBytes(out.rows)]
    const zero = new Uint8Array(sources[0]!.length)
    expected.rows.forEach((token, row) =>
      expect(Buffer.compare(rows[row]!, token === undefined ? zero : sources[token]!)).toBe(0),
    )
  })

  test('gives the same bytes with 1, 2 and 5 threads', async () => {
    const [tokens, topk, experts] = [700, 6, 11]
    const ids = Array.from(randomNumbers(tokens * topk, 9), (value) => Math.floor((value + 1) * 6) - 1)
    const x = randomBits([tokens, 160], 'bf16')
    const scales = randomBits([tokens, 2], 'f32')
    const results: Buffer[] = []
    for (const threads of [1, 2, 5]) {
      const stream = device.createStream({ threads })
      const out = permute(x, {
        scales,
        topkIdx: Tensor.from(ids, [tokens, topk], 'i64'),
        numLocalExperts: experts,
        stream,
      })
      await stream.close()
      const { rows, scales: rowScales, expertIds, inversePermutation, expertStart, expertNumTokens } = await onHost(out)
      const tensors = [rows, rowScales!, expertIds, inversePermutation, expertStart, expertNumTokens]
      results.push(
        Buffer.concat(tensors.map(({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength))),
      )
    }
    expect(Buffer.compare(results[0]!, results[1]!)).toBe(0)
    expect(Buffer.compare(results[0]!, results[2]!)).toBe(0)
  })

  test('gives empty tensors when no row is needed', async () => {
    const none = await onHost(
      permute(Tensor.zeros([0, 64], 'bf16'), { topkIdx: Tensor.zeros([0, 2], 'i64'), numLocalExperts: 4 }),
    )
    const skipped = await onHost(
      permute(Tensor.zeros([3, 64], 'fp8e4m3'), {
        scales: Tensor.zeros([3, 1], 'f32'),
        topkIdx: Tensor.from([-1, -1, -1], [3, 1], 'i32'),
        numLocalExperts: 4,
        expertNumTokensHost: new Int32Array(4),
      }),
    )
    expect([none.rows.shape, none.expertIds.shape, none.inversePermutation.shape]).toEqual([[0, 64], [0], [0, 2]])
    expect([skipped.rows.shape, skipped.scales!.shape, skipped.expertIds.shape]).toEqual([[0, 64], [0, 1], [0]])
    expect([...skipped.inversePermutation.data]).toEqual([-1, -1, -1])
    expect([...skipped.expertStart.toNumbers()]).toEqual([0, 0, 0, 0])
  })

  test('keeps more rows than an expert has slots when the counts say so', async () => {
    const options = { topkIdx: Tensor.from([1, 0, 1], [3, 1], 'i32'), numLocalExperts: 2, alignment: 4 }
    const x = randomBits([3, 8], 'u8')
    const out = await onHost(permute(x, { ...options, expertNumTokensHost: Int32Array.of(5, 2) }))
    const plain = { topkIdx: [[1], [0], [1]], numLocalExperts: 2, alignment: 4, expertNumTokens: [5, 2] }
    expectEqual(out, reference.permute(rowBytes(x), plain))
    expect([...out.expertStart.toNumbers()]).toEqual([0, 8])
    expect([...out.expertNumTokens.data]).toEqual([1, 2])
  })

  test('reads rows and scales that lie apart', async () => {
    const wide = randomBits([5, 24], 'bf16')
    const wideScales = randomBits([5, 7], 'f32')
    const view = (tensor: Tensor, columns: number): Tensor =>
      new Tensor({ memory: tensor.memory, dtype: tensor.dtype, shape: [5, columns], strides: tensor.strides })
    const options = { topkIdx: Tensor.from([1, 0, -1, 1, 0], [5, 1], 'i32'), numLocalExperts: 2, alignment: 2 }
    const out = await onHost(permute(view(wide, 16), { ...options, scales: view(wideScales, 3) }))
    const cut = (tensor: Tensor, bytes: number): Uint8Array[] => rowBytes(tensor).map((row) => row.slice(0, bytes))
    const plain = {
      topkIdx: [[1], [0], [-1], [1], [0]],
      numLocalExperts: 2,
      alignment: 2,
      capacity: out.rows.shape[0]!,
    }
    expectEqual(out, reference.permute(cut(wide, 32), { ...plain, scales: cut(wideScales, 12) }))
  })
})

describe('permute into given memory', () => {
  const x = randomBits([3, 4], 'u8')
  const scales = randomBits([3, 2], 'f32')
  const base = { scales, topkIdx: Tensor.from([1, 0, 1], [3, 1], 'i32'), numLocalExperts: 2, alignment: 2 }
  const marked = (): { rows: Tensor; scales: Tensor; expertIds: Tensor; inversePermutation: Tensor } => ({
    rows: Tensor.from(Array<number>(24).fill(9), [6, 4], 'u8'),
    scales: Tensor.from(Array<number>(12).fill(9), [6, 2], 'f32'),
    expertIds: Tensor.from(Array<number>(6).fill(9), [6], 'i32'),
    inversePermutation: Tensor.from(Array<number>(3).fill(9), [3, 1], 'i32'),
  })
  // expert 0: token 1 and a padding row; expert 1: tokens 0 and 2; then two rows that no expert needs
  const tokenOfRow = [1, undefined, 0, 2, undefined, undefined]

  test.each([false, true])('leaves padding rows as they were, unless zeroPadding (%s)', async (zeroPadding) => {
    const memory = marked()
    expect(permute(x, { ...base, out: memory, zeroPadding })).toMatchObject(memory)
    const out = await onHost(memory)
    const padding = zeroPadding ? 0 : 9
    expect(matrix(out.rows.toNumbers(), 4)).toEqual(
      tokenOfRow.map((token) => (token === undefined ? Array<number>(4).fill(padding) : [...rowBytes(x)[token]!])),
    )
    const sources = matrix(hostOf(scales).toNumbers(), 2)
    expect(matrix(out.scales.toNumbers(), 2)).toEqual(
      tokenOfRow.map((token) => (token === undefined ? [padding, padding] : sources[token])),
    )
    expect([...out.expertIds.data]).toEqual([0, -1, 1, 1, -1, -1])
    expect([...out.inversePermutation.data]).toEqual([2, 0, 3])
  })

  test('replays in a graph with what the inputs hold then', async () => {
    const topkIdx = Tensor.from([1, 0, 1], [3, 1], 'i32')
    const memory = marked()
    const stream = device.createStream()
    const graph = Graph.capture(stream, () => permute(x, { ...base, topkIdx, out: memory, zeroPadding: true, stream }))
    copyTensor(Tensor.from([0, 0, -1], [3, 1], 'i32'), topkIdx, { stream })
    graph.launch(stream)
    await stream.close()
    const out = await onHost(memory)
    expect([...out.inversePermutation.data]).toEqual([0, 1, -1])
    expect([...out.expertIds.data]).toEqual([0, 0, -1, -1, -1, -1])
    expect(matrix(out.rows.toNumbers(), 4)).toEqual([
      ...rowBytes(x)
        .slice(0, 2)
        .map((row) => [...row]),
      ...Array.from({ length: 4 }, () => [0, 0, 0, 0]),
    ])
  })

  test('fails the stream with the rows needed, and writes nothing, when there are too few', async () => {
    const rows = Tensor.from(Array<number>(12).fill(9), [3, 4], 'u8')
    permute(x, { topkIdx: base.topkIdx, numLocalExperts: 2, alignment: 2, out: { rows } })
    const message = expect.stringContaining('3 rows, but 4 are needed')
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', message })
    expect([...(await rows.read())]).toEqual(Array<number>(12).fill(9))
  })

  test.each([
    [-1 as const, [0, -1, 1, 1, -1, -1]],
    ['expert' as const, [0, 0, 1, 1, 0, 0]],
    ['tile' as const, [0, 0, 1, 1, 9, 9]],
  ])('gives padding rows the ids that fill %s asks for', async (fill, expected) => {
    const memory = marked()
    const { expertEnd } = await onHost(permute(x, { ...base, out: memory, fill }))
    const out = await onHost(memory)
    expect([...out.expertIds.data]).toEqual(expected)
    expect([...expertEnd.data]).toEqual([1, 4])
  })

  test('throws at once when host counts tell that there are too few', () => {
    const call = (): unknown =>
      permute(x, { ...base, expertNumTokensHost: Int32Array.of(1, 2), out: { expertIds: Tensor.zeros([3], 'i32') } })
    expect(call).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_CAPACITY', details: { argument: 'out', capacity: 3, needed: 4 } }),
    )
  })
})
