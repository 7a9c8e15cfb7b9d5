import { type DType, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { moePermute, permute, permuteMasked, reference } from '../src/index.js'
import { restride } from './restride.js'
import {
  asWords,
  elementRows,
  firstDifference,
  matrix,
  onHost,
  randomBits,
  randomNumbers,
  rowBytes,
} from './support.js'

interface Case {
  readonly tokens: number
  readonly topk: number
  readonly experts: number
  readonly groups: number
  readonly dtype: DType
  readonly pack?: boolean
  readonly strides?: 'packed' | 'wide' | 'column'
  readonly scaleLayout?: 'row' | 'column'
  /** Bytes of a row that travels beside them. */
  readonly rowBytes?: number
}

// Thousands of slots, where devices do not take tokens one by one. Numbers are such that the last tile of anything is not full.
const cases: [string, Case][] = [
  ['rows of 92 bytes', { tokens: 1001, topk: 8, experts: 32, groups: 23, dtype: 'f32', rowBytes: 2880 }],
  ['rows of 112 bytes', { tokens: 901, topk: 4, experts: 16, groups: 28, dtype: 'f32', rowBytes: 3584 }],
  ['rows of 128 exponents', { tokens: 901, topk: 4, experts: 16, groups: 128, dtype: 'u8', rowBytes: 2048 }],
  ['rows of 224 bytes', { tokens: 701, topk: 6, experts: 16, groups: 56, dtype: 'f32', rowBytes: 7168 }],
  ['columns of words', { tokens: 700, topk: 8, experts: 32, groups: 56, dtype: 'f32', scaleLayout: 'column' }],
  [
    'more columns than a tile has',
    { tokens: 517, topk: 6, experts: 5, groups: 129, dtype: 'i32', scaleLayout: 'column' },
  ],
  ['packed exponents', { tokens: 901, topk: 4, experts: 16, groups: 56, dtype: 'u8', pack: true, rowBytes: 7168 }],
  [
    'packed exponents from columns to columns',
    { tokens: 640, topk: 7, experts: 9, groups: 23, dtype: 'u8', pack: true, strides: 'column', scaleLayout: 'column' },
  ],
  ['exponents from columns', { tokens: 999, topk: 3, experts: 40, groups: 17, dtype: 'u8', strides: 'column' }],
  [
    'exponents to columns from places apart',
    { tokens: 999, topk: 3, experts: 40, groups: 5, dtype: 'u8', strides: 'wide', scaleLayout: 'column' },
  ],
  ['a single column', { tokens: 2500, topk: 1, experts: 3, groups: 1, dtype: 'f32', rowBytes: 16 }],
  ['more slots than lanes', { tokens: 70, topk: 40, experts: 6, groups: 9, dtype: 'f32', scaleLayout: 'column' }],
  ['a token in several tiles', { tokens: 3, topk: 1500, experts: 4, groups: 3, dtype: 'f32', rowBytes: 32 }],
  ['rows in pieces', { tokens: 300, topk: 8, experts: 8, groups: 3, dtype: 'f32', rowBytes: 20_000 }],
]

/** Ids of which one in `experts` + 1 is of no local expert. */
function drawIds({ tokens, topk, experts }: Case): number[] {
  return Array.from(randomNumbers(tokens * topk, 3), (value) => Math.floor(((value + 1) / 2) * (experts + 1)) - 1)
}

function prepare(drawn: Case): {
  x: Tensor
  ours: { topkIdx: Tensor; numLocalExperts: number; scales: Tensor; packScales: boolean; scaleLayout: 'row' | 'column' }
  plain: { topkIdx: number[][]; numLocalExperts: number; scales: number[][] }
  empty: number[]
} {
  const { tokens, topk, experts, groups, dtype, pack = false, strides = 'packed', scaleLayout = 'row' } = drawn
  const ids = drawIds(drawn)
  const scales = randomBits([tokens, groups], dtype, 5)
  const rows = elementRows(asWords(scales))
  return {
    x: randomBits([tokens, drawn.rowBytes ?? 1], 'u8'),
    ours: {
      topkIdx: Tensor.from(ids, [tokens, topk], 'i32'),
      numLocalExperts: experts,
      scales: restride(scales, strides),
      packScales: pack,
      scaleLayout,
    },
    plain: {
      topkIdx: matrix(ids, topk),
      numLocalExperts: experts,
      scales: pack ? rows.map((row) => [...reference.packUe8m0(row)]) : rows,
    },
    empty: Array<number>(pack ? Math.ceil(groups / 4) : groups).fill(0),
  }
}

describe('scales of many tokens', () => {
  test.each(cases)('follow their rows: %s', async (_, drawn) => {
    const { x, ours, plain, empty } = prepare(drawn)
    const actual = await onHost(permute(x, { ...ours, alignment: 16 }))
    const capacity = actual.rows.shape[0]!
    const expected = reference.permute(rowBytes(x), { ...plain, alignment: 16, capacity })
    const noRow = new Uint8Array(x.shape[1]!)
    const scales = expected.scales.map((row) => row ?? empty)
    expect(firstDifference(elementRows(asWords(actual.scales!)), scales)).toBeUndefined()
    const rows = expected.rows.map((row) => row ?? noRow)
    expect(firstDifference(rowBytes(actual.rows), rows)).toBeUndefined()
  })

  test.each(cases)('follow them into the masked layout: %s', async (_, drawn) => {
    const { x, ours, plain, empty } = prepare(drawn)
    const maxTokens = Math.max(...reference.countExpertNumTokens(plain.topkIdx, plain)) + 5
    const actual = await onHost(permuteMasked(x, { ...ours, maxTokens }))
    const expected = reference.permuteMasked(rowBytes(x), { ...plain, maxTokens })
    const scales = expected.scales.flat().map((row) => row ?? empty)
    expect(firstDifference(elementRows(asWords(actual.scales!)), scales)).toBeUndefined()
  })

  test.each(['row', 'column'] as const)('stay where no slot is local, by %s', async (scaleLayout) => {
    const drawn = { tokens: 600, topk: 4, experts: 8, groups: 23, dtype: 'f32', scaleLayout } as const
    const { x, ours } = prepare(drawn)
    const topkIdx = Tensor.from(Array<number>(2400).fill(-1), [600, 4], 'i32')
    const left = randomBits([64, 23], 'f32', 6)
    const scales = restride(left, scaleLayout === 'column' ? 'column' : 'packed')
    const rows = Tensor.zeros([64, 1], 'u8')
    const actual = await onHost(permute(x, { ...ours, topkIdx, alignment: 1, out: { rows, scales } }))
    expect(firstDifference(elementRows(asWords(actual.scales!)), elementRows(asWords(left)))).toBeUndefined()
  })

  test.each(['row', 'column'] as const)('follow the few rows that there are, by %s', async (scaleLayout) => {
    // Of hundreds of tokens in a row nobody is local, of the others one slot.
    const drawn = { tokens: 900, topk: 4, experts: 8, groups: 23, dtype: 'f32', scaleLayout } as const
    const { x, ours, plain, empty } = prepare(drawn)
    const ids = Array.from({ length: 3600 }, (_, slot) => (slot % 4 === 1 && slot % 2000 < 300 ? slot % 8 : -1))
    const few = { ...plain, topkIdx: matrix(ids, 4) }
    const actual = await onHost(permute(x, { ...ours, topkIdx: Tensor.from(ids, [900, 4], 'i32'), alignment: 16 }))
    const expected = reference.permute(rowBytes(x), { ...few, alignment: 16, capacity: actual.rows.shape[0]! })
    const scales = expected.scales.map((row) => row ?? empty)
    expect(firstDifference(elementRows(asWords(actual.scales!)), scales)).toBeUndefined()
  })

  test('are those of local slots where foreign ones are numbered too', async () => {
    const drawn = { tokens: 800, topk: 8, experts: 12, groups: 23, dtype: 'f32', rowBytes: 64 } as const
    const { x, ours, plain, empty } = prepare(drawn)
    const expertMap = Array.from({ length: 12 }, (_, id) => (id % 3 === 0 ? id / 3 : -1))
    const { topkIdx, scales } = ours
    const actual = await onHost(
      moePermute(x, { topkIdx, scales, numLocalExperts: 4, expertMap: Tensor.from(expertMap, [12], 'i32') }),
    )
    const capacity = actual.rows.shape[0]!
    const expected = reference.permute(rowBytes(x), { ...plain, numLocalExperts: 4, expertMap, alignment: 1, capacity })
    const last = Number(actual.expertFirstTokenOffset.data[4])
    const expectedScales = expected.scales.map((row) => row ?? empty).slice(0, last)
    expect(last).toBeGreaterThan(1000)
    expect(firstDifference(elementRows(asWords(actual.scales!)).slice(0, last), expectedScales)).toBeUndefined()
  })
})
