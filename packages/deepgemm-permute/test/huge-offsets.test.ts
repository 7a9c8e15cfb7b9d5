import { Tensor, wrapPointer } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { permute, unpermuteAndReduce } from '../src/index.js'
import { device, randomBits } from './support.js'

// Memory is mapped, not touched: only the few rows that are written take real pages.
const hidden = 4096

/** Some bytes of memory that is too long for an ArrayBuffer. */
function bytesAt({ memory }: Tensor, offset: number, length: number): Uint8Array {
  return new Uint8Array(wrapPointer(device, memory.pointer + BigInt(offset), length).arrayBuffer)
}

/** The bytes of one row. */
function rowOf(tensor: Tensor, row: number): Uint8Array {
  const bytes = tensor.byteLength / tensor.shape[0]!
  return bytesAt(tensor, row * bytes, bytes)
}

test('rows, scales and sums are found behind 4 GiB', async () => {
  const reserved = 2 ** 20 + 300 // 8 GiB of bf16 rows: both elements and bytes pass 2^32
  const x = randomBits([3, hidden], 'bf16')
  const scales = randomBits([3, 9], 'u8')
  const topkIdx = Tensor.from([1, 0, 1], [3, 1], 'i32')
  const out = permute(x, {
    ...{ topkIdx, numLocalExperts: 2, expertNumTokensHost: Int32Array.of(reserved, 2), alignment: 16 },
    ...{ scales, packScales: true, scaleLayout: 'column', fill: 'tile' },
  })
  const topkWeights = Tensor.from([1, 1, 1], [3, 1], 'f32')
  const { inversePermutation } = out
  const back = unpermuteAndReduce(out.rows, { topkIdx, topkWeights, inversePermutation, outDtype: 'f32' })
  const direct = unpermuteAndReduce(x, {
    ...{ topkIdx, topkWeights, outDtype: 'f32' },
    inversePermutation: Tensor.from([0, 1, 2], [3, 1], 'i32'),
  })
  await device.defaultStream.synchronize()
  const start = Math.ceil(reserved / 16) * 16
  expect([...inversePermutation.data]).toEqual([start, 0, start + 1])
  expect(start * hidden).toBeGreaterThan(2 ** 32)
  expect([start, 0, start + 1].map((row) => rowOf(out.rows, row))).toEqual([0, 1, 2].map((row) => rowOf(x, row)))
  expect(back.data).toEqual(direct.data)

  const rows = out.rows.shape[0]!
  expect(out.scales!.strides).toEqual([1, rows])
  expect([...bytesAt(out.scales!, (2 * rows + start) * 4, 4)]).toEqual([Number(scales.data[8]), 0, 0, 0])
  for (const tensor of [out.rows, out.scales!, out.expertIds]) tensor.memory.close()
})

test('sources are found behind 4 GiB', async () => {
  const rowStride = 2 ** 31 + 64
  const all = Tensor.zeros([3 * rowStride], 'u8')
  const { memory } = all
  const x = new Tensor({ memory, dtype: 'u8', shape: [3, 100], strides: [rowStride, 1] })
  bytesAt(all, 2 * rowStride, 100).fill(7)
  const topkIdx = Tensor.from([0, -1, 0], [3, 1], 'i64')
  const out = permute(x, { topkIdx, numLocalExperts: 1, alignment: 1 })
  await device.defaultStream.synchronize()
  expect(rowOf(out.rows, 0)).toEqual(new Uint8Array(100))
  expect(rowOf(out.rows, 1)).toEqual(new Uint8Array(100).fill(7))
  memory.close()
})
