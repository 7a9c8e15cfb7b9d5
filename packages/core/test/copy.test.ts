import { describe, expect, test } from 'vitest'
import { copyTensor, type CudaDevice, getDefaultDevice, getDevice, Graph, Tensor } from '../src/index.js'

const device = getDefaultDevice()
const cpu = getDevice('cpu')
const refusal = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
const numbers = (count: number): Int32Array => Int32Array.from({ length: count }, (_, i) => i * 3)

describe('tensors', () => {
  test('take numbers and storage, and give them back', async () => {
    expect([...(await Tensor.from([1, -2.5, 1e9], [3], 'bf16').readNumbers())]).toEqual([1, -2.5, 998244352])
    const stored = Uint16Array.from([0x3f80, 0x7fff, 0x8000])
    expect(await Tensor.copyOf(stored, [3], 'bf16').read()).toEqual(stored)
    expect([...(await Tensor.zeros([2, 500], 'f32').read())].every((value) => value === 0)).toBe(true)
    expect((await Tensor.empty([0, 3], 'i64').read()).length).toBe(0)
    expect(() => Tensor.copyOf(stored, [4], 'bf16')).toThrow(refusal)
  })

  test('read waits for the work of the stream, and gives its failure', async () => {
    await using stream = device.createStream()
    const tensor = Tensor.zeros([4], 'i32')
    stream.delay(2000)
    copyTensor(Tensor.from([1, 2, 3, 4], [4], 'i32'), tensor, { stream })
    expect([...(await tensor.read({ stream }))]).toEqual([1, 2, 3, 4])
    stream.fail('ERR_MOE_EP_CAPACITY', 'full')
    await expect(tensor.read({ stream })).rejects.toMatchObject({ code: 'ERR_MOE_EP_CAPACITY' })
  })

  test('zeroed in the order of a stream, they are zero for what follows there', async () => {
    await using stream = device.createStream()
    for (let i = 0; i < 20; i++) {
      const tensor = Tensor.zeros([5000], 'i32', device, { stream })
      expect((await tensor.read({ stream })).every((value) => value === 0)).toBe(true)
      copyTensor(Tensor.copyOf(numbers(5000), [5000], 'i32'), tensor, { stream })
      await stream.synchronize()
      tensor.memory.close()
    }
  })
})

describe('copies', () => {
  test.each([1, 1000, 9_000_000])('of %d elements go from the host to the device and back', async (count) => {
    const [from, there, back] = [
      Tensor.copyOf(numbers(count), [count], 'i32', cpu),
      Tensor.empty([count], 'i32', device),
      Tensor.zeros([count], 'i32', cpu),
    ]
    const stream = device.defaultStream
    copyTensor(from, there, { stream })
    copyTensor(there, back, { stream })
    await stream.synchronize()
    expect(back.data.every((value, i) => value === i * 3)).toBe(true)
  })

  test('in a graph read the host again with every launch', async () => {
    await using stream = device.createStream()
    const [host, there] = [Tensor.from([1], [1], 'i32', cpu), Tensor.zeros([1], 'i32', device)]
    using graph = Graph.capture(stream, () => copyTensor(host, there, { stream }))
    for (const value of [5, 6]) {
      host.data[0] = value
      graph.launch(stream)
      expect([...(await there.read({ stream }))]).toEqual([value])
    }
  })

  test('between two places of the host happen when the stream gets there, and keep nobody waiting', async () => {
    await using stream = device.createStream()
    const pinned = device.kind === 'cuda' ? (device as CudaDevice).allocatePinned(cpu, 4) : cpu.allocate(4)
    const [from, between, to] = [
      Tensor.from([1], [1], 'i32', cpu),
      new Tensor({ memory: pinned, dtype: 'i32', shape: [1] }),
      Tensor.zeros([1], 'i32', cpu),
    ]
    stream.delay(300_000)
    copyTensor(from, between, { stream })
    copyTensor(between, to, { stream })
    const end = stream.record()
    expect(end.query()).toBe(false)
    from.data[0] = 2
    await stream.synchronize()
    expect([between.data[0], to.data[0]]).toEqual([2, 2])
  })

  // Native threads that tell of completions also give memory back. What is enqueued at that very moment must not lose its own.
  test('of many streams at once keep the memory that they go through until they are done', async () => {
    const copyBackAndForth = async (number: number): Promise<void> => {
      await using stream = device.createStream()
      for (let round = 0; round < 150; round++) {
        const sent = numbers(300 + 40 * number + round).map((value) => value * (number + 1) + round)
        const [from, there, back] = [
          Tensor.copyOf(sent, [sent.length], 'i32', cpu),
          Tensor.empty([sent.length], 'i32', device),
          Tensor.zeros([sent.length], 'i32', cpu),
        ]
        copyTensor(from, there, { stream })
        copyTensor(there, back, { stream })
        await stream.synchronize()
        expect(back.data).toEqual(sent)
      }
    }
    await Promise.all(Array.from({ length: 8 }, (_, number) => copyBackAndForth(number)))
  })

  test('between tensors that do not fit are refused', () => {
    const tensor = Tensor.zeros([4], 'i32')
    expect(() => copyTensor(tensor, Tensor.zeros([5], 'i32'))).toThrow(refusal)
    expect(() => copyTensor(tensor, Tensor.zeros([4], 'f32'))).toThrow(refusal)
    expect(() => copyTensor(1 as unknown as Tensor, tensor)).toThrow(refusal)
  })
})
