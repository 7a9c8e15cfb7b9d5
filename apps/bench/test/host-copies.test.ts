import { getDevice, Tensor } from '@moe-ep/core'
import { expect, it } from 'vitest'
import { hostCopies } from '../src/measure/host-copies.js'
import { Scope } from '../src/measure/scope.js'
import { fillRepeating, repeatAfter } from '../src/workload/device-words.js'
import { patterns, randomKey, wordAt } from '../src/workload/random-words.js'

const cpu = getDevice('cpu')

it('copies tensors wherever they are, shared memory once', async () => {
  const scope = new Scope(cpu)
  const stream = cpu.createStream({ threads: 1 })
  const rows = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2], 'i32', getDevice('cpu'))
  const transposed = new Tensor({ memory: rows.memory, dtype: 'i32', shape: [2, 2], strides: [1, 2], byteOffset: 8 })
  const value = {
    rows,
    lists: [transposed, 7],
    absent: undefined,
    empty: Tensor.zeros([0, 4], 'bf16', getDevice('cpu')),
    name: 'x',
  }
  const copy = await hostCopies(value, scope, stream)
  ;(rows.data as Int32Array).fill(0)
  expect(copy).toMatchObject({ lists: [{}, 7], absent: undefined, name: 'x' })
  expect(Array.from(copy.rows.data, Number)).toEqual([1, 2, 3, 4, 5, 6])
  const view = copy.lists[0] as Tensor
  expect(view).toMatchObject({ shape: [2, 2], strides: [1, 2], byteOffset: 8, dtype: 'i32' })
  expect(view.memory).toBe(copy.rows.memory)
  expect(copy.empty.shape).toEqual([0, 4])
  await scope.close()
  expect(copy.rows.memory.closed).toBe(true)
  expect(rows.memory.closed).toBe(false)
  await stream.close()
})

it('fills with words that repeat, made once', async () => {
  const key = randomKey(1, 'test', 0)
  let made = 0
  const fill = (words: number): Tensor => {
    const tensor = Tensor.zeros([words * 4 + 1], 'u8', getDevice('cpu'))
    fillRepeating(tensor, 'test', (count) => {
      made++
      return Uint32Array.from({ length: count }, (_, i) => wordAt(key, i) & patterns.bf16.keep)
    })
    return tensor
  }
  const words = 2 * repeatAfter + 1000
  const [long, short] = [fill(words), fill(10)]
  await cpu.defaultStream.synchronize()
  const found = new Uint32Array(long.data.buffer, long.data.byteOffset, words)
  const expected = (index: number): number => (wordAt(key, index % repeatAfter) & patterns.bf16.keep) >>> 0
  const indices = [0, 1, repeatAfter - 1, repeatAfter, 2 * repeatAfter - 1, 2 * repeatAfter, words - 1]
  expect(indices.map((index) => found[index])).toEqual(indices.map(expected))
  expect(long.data.at(-1)).toBe(0)
  expect(Buffer.compare(short.data.subarray(0, 40) as Uint8Array, long.data.subarray(0, 40) as Uint8Array)).toBe(0)
  expect(made).toBe(1)
})
