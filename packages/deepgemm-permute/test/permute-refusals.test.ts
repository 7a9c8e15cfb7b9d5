import { Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { permute, type PermuteOptions } from '../src/index.js'
import { failure } from './support.js'

const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })

describe('permute refuses', () => {
  const x = Tensor.zeros([2, 4], 'bf16')
  const base: PermuteOptions = { topkIdx: Tensor.zeros([2, 2], 'i64'), numLocalExperts: 2 }
  const wide = Tensor.zeros([4, 4], 'bf16')
  const ids = Tensor.zeros([2, 2], 'i32')
  const scales = Tensor.zeros([4, 1], 'f32')

  test.each<[string, () => Tensor, Partial<PermuteOptions>]>([
    ['rows of ids', () => Tensor.zeros([2, 4], 'i32'), {}],
    ['one dimension', () => Tensor.zeros([8], 'bf16'), {}],
    [
      'columns that lie apart',
      () => new Tensor({ memory: x.memory, dtype: 'bf16', shape: [2, 2], strides: [4, 2] }),
      {},
    ],
    ['ids of another number of tokens', () => x, { topkIdx: Tensor.zeros([3, 2], 'i64') }],
    ['ids of another dtype', () => x, { topkIdx: Tensor.zeros([2, 2], 'f32') }],
    ['no experts', () => x, { numLocalExperts: 0 }],
    ['a map of another dtype', () => x, { expertMap: Tensor.zeros([4], 'i64') }],
    ['scales of another dtype', () => x, { scales: Tensor.zeros([2, 1], 'bf16') }],
    ['scales without memory for them', () => x, { out: { scales: Tensor.zeros([256, 1], 'f32') } }],
    ['f32 scales to pack', () => x, { scales: Tensor.zeros([2, 1], 'f32'), packScales: true }],
    ['another packScales', () => x, { packScales: 1 as unknown as boolean }],
    ['another scaleLayout', () => x, { scaleLayout: 'rows' as 'row' }],
    ['scales of another number of tokens', () => x, { scales: Tensor.zeros([3, 1], 'f32') }],
    ['alignment 0', () => x, { alignment: 0 }],
    ['another fill', () => x, { fill: 0 as unknown as -1 }],
    ['another zeroPadding', () => x, { zeroPadding: 1 as unknown as boolean }],
    ['too few device counts', () => x, { expertNumTokens: Tensor.zeros([1], 'i32') }],
    ['too few host counts', () => x, { expertNumTokensHost: Int32Array.of(4) }],
    ['an out of another dtype', () => x, { out: { rows: Tensor.zeros([256, 4], 'f16') } }],
    [
      'rows over x',
      () => wide.slice(1, 3),
      { expertNumTokensHost: Int32Array.of(4, 0), alignment: 1, out: { rows: wide } },
    ],
    ['the inverse over the ids', () => x, { topkIdx: ids, out: { inversePermutation: ids } }],
    ['scales over scales', () => x, { alignment: 1, scales: scales.slice(0, 2), out: { scales } }],
    [
      'outs of different lengths',
      () => x,
      { out: { rows: Tensor.zeros([512, 4], 'bf16'), expertIds: Tensor.zeros([256], 'i32') } },
    ],
  ])('%s', (_, rows, options) => {
    expect(() => permute(rows(), { ...base, ...options })).toThrow(refused)
  })

  test.each([
    [
      'an id that is too large',
      { topkIdx: Tensor.from([0, 1, 2, -1], [2, 2], 'i64') },
      'received 2 for token 1, slot 0',
    ],
    [
      'an id that is too small',
      { topkIdx: Tensor.from([0, -7, 1, 1], [2, 2], 'i32') },
      'received -7 for token 0, slot 1',
    ],
    ['an id beyond the map', { expertMap: Tensor.zeros([0], 'i32') }, 'an expert below 0, received 0'],
    ['a map entry that is too large', { expertMap: Tensor.from([3], [1], 'i32') }, 'received 3 for expert 0'],
    [
      'a count that is too small',
      { expertNumTokens: Tensor.from([3, 8], [2], 'i32') },
      'at least 4 for local expert 0, received 3',
    ],
    [
      'a host count that is too small',
      { expertNumTokensHost: Int32Array.of(0, 8) },
      'at least 4 for local expert 0, received 0',
    ],
  ])('%s, at the next await', async (_, options, message) => {
    permute(x, { ...base, ...options })
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message: expect.stringContaining(message) })
  })
})
