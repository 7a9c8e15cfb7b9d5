import { copyTensor, type StorageArray, Tensor } from '@moe-ep/core'
import { expect, test } from 'vitest'
import { permute, unpermuteAndReduce } from '../src/index.js'
import { device, hostOf, randomBits } from './support.js'

// On the cpu memory is mapped, not touched: only the few rows that are written take real pages.
const hidden = 4096

/** Some bytes of memory that is too long for an ArrayBuffer. */
function bytesAt({ memory }: Tensor, offset: number, length: number): Tensor {
  return new Tensor({ memory, dtype: 'u8', shape: [length], byteOffset: offset })
}

/** What elements are stored as. */
function bytesOf({ buffer, byteOffset, byteLength }: StorageArray): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength)
}

/** The bytes of one row. */
async function rowOf(tensor: Tensor, row: number): Promise<StorageArray> {
  const bytes = tensor.byteLength / tensor.shape[0]!
  return bytesAt(tensor, row * bytes, bytes).read()
}

// Few tokens, and so many that a cuda device has other kernels for them.
test.each([3, 2500])('rows, scales, padding and sums of %i tokens are found behind 4 GiB', async (tokens) => {
  const reserved = 2 ** 20 + 300 // 8 GiB of bf16 rows: both elements and bytes pass 2^32
  const x = randomBits([tokens, hidden], 'bf16')
  const scales = randomBits([tokens, 9], 'u8')
  // The second token alone is the first expert's.
  const expertOf = Array.from({ length: tokens }, (_, token) => (token === 1 ? 0 : 1))
  const topkIdx = Tensor.from(expertOf, [tokens, 1], 'i32')
  const start = Math.ceil(reserved / 16) * 16
  const capacity = start + Math.ceil((tokens - 1) / 16) * 16
  // Of a bulk store initcheck sees the first 32 bytes only: zeros, so that it has nothing to say of the sums.
  const zeros = Tensor.zeros([capacity, hidden], 'bf16')
  const marked = Uint8Array.from({ length: 2 * hidden }, () => 7)
  copyTensor(Tensor.copyOf(marked, [2 * hidden], 'u8'), bytesAt(zeros, (start - 1) * 2 * hidden, 2 * hidden))
  const zeroPadding = device.kind === 'cuda' // the cpu's pages would all become real
  const out = permute(x, {
    ...{ topkIdx, numLocalExperts: 2, expertNumTokensHost: Int32Array.of(reserved, tokens - 1), alignment: 16 },
    ...{ scales, packScales: true, scaleLayout: 'column', fill: 'tile' },
    ...{ zeroPadding, out: { rows: zeros } },
  })
  const topkWeights = Tensor.from(Array<number>(tokens).fill(1), [tokens, 1], 'f32')
  const { inversePermutation } = out
  const back = unpermuteAndReduce(out.rows, { topkIdx, topkWeights, inversePermutation, outDtype: 'f32' })
  const direct = unpermuteAndReduce(x, {
    ...{ topkIdx, topkWeights, outDtype: 'f32' },
    inversePermutation: Tensor.from([...expertOf.keys()], [tokens, 1], 'i32'),
  })
  const rowOfToken = expertOf.map((expert, token) => (expert === 0 ? 0 : start + (token === 0 ? 0 : token - 1)))
  expect([...(await inversePermutation.read())]).toEqual(rowOfToken)
  expect(start * hidden).toBeGreaterThan(2 ** 32)
  for (const token of [0, 1, 2, tokens - 1])
    expect(await rowOf(out.rows, rowOfToken[token]!)).toEqual(await rowOf(x, token))
  expect(await rowOf(out.rows, start - 1)).toEqual(zeroPadding ? new Uint8Array(2 * hidden) : marked)
  expect(Buffer.compare(bytesOf(await back.read()), bytesOf(await direct.read()))).toBe(0)

  expect(out.scales!.strides).toEqual([1, capacity])
  for (const token of [0, 1, 2, tokens - 1]) {
    const word = await bytesAt(out.scales!, (2 * capacity + rowOfToken[token]!) * 4, 4).read()
    expect([...word]).toEqual([Number(hostOf(scales).data[9 * token + 8]), 0, 0, 0])
  }
  for (const tensor of [out.rows, out.scales!, out.expertIds]) tensor.memory.close()
})

test('sources are found behind 4 GiB', async () => {
  const rowStride = 2 ** 31 + 64
  const all = Tensor.zeros([3 * rowStride], 'u8')
  const { memory } = all
  const x = new Tensor({ memory, dtype: 'u8', shape: [3, 100], strides: [rowStride, 1] })
  copyTensor(Tensor.from(Array<number>(100).fill(7), [100], 'u8'), bytesAt(all, 2 * rowStride, 100))
  const topkIdx = Tensor.from([0, -1, 0], [3, 1], 'i64')
  const out = permute(x, { topkIdx, numLocalExperts: 1, alignment: 1 })
  expect(await rowOf(out.rows, 0)).toEqual(new Uint8Array(100))
  expect(await rowOf(out.rows, 1)).toEqual(new Uint8Array(100).fill(7))
  memory.close()
})
