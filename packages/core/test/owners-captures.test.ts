import { describe, expect, test } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import {
  copyTensor,
  type CudaDevice,
  Event,
  getDevice,
  Graph,
  listDevices,
  MoeEpError,
  type Stream,
  Tensor,
} from '../src/index.js'
import { collectHandles } from './collect.js'

const cpu = getDevice('cpu')
const hasGpu = requires('cuda', () => {
  const gpu = listDevices().find(({ name, available }) => name === 'cuda:0' && available)
  return gpu !== undefined || (listDevices().at(-1)?.reason ?? 'no reason')
})
const gpuDevice = (): CudaDevice => getDevice('cuda:0') as CudaDevice

const count = 5000
const numbers = (factor: number): Int32Array => Int32Array.from({ length: count }, (_, i) => i * factor + 1)
const onGpu = (factor: number): Tensor => Tensor.copyOf(numbers(factor), [count], 'i32', gpuDevice())

async function codeOf(work: () => unknown): Promise<string> {
  try {
    await work()
  } catch (error) {
    return MoeEpError.from(error).code
  }
  return 'none'
}

/** A stream, and another one over the same `cudaStream_t`: what captures the first is its owner to the other. */
function twice(): { owner: Stream; stream: Stream } {
  const owner = gpuDevice().createStream()
  return { owner, stream: gpuDevice().wrapStream(owner.cudaHandle) }
}

/** What could be used again by others is. */
async function useMemoryAgain(owner: Stream): Promise<void> {
  await collectHandles()
  for (let round = 0; round < 3; round++) {
    const tensors = Array.from({ length: 20 }, () => onGpu(-round - 7))
    const host = Array.from({ length: 20 }, () => Tensor.copyOf(new Int32Array(count).fill(-9), [count], 'i32', cpu))
    for (const [i, tensor] of tensors.entries()) copyTensor(host[i]!, tensor, { stream: owner })
    await owner.synchronize()
    for (const { memory } of [...tensors, ...host]) memory.close()
  }
}

describe.skipIf(!hasGpu)('work on a wrapped stream that its owner captures', () => {
  test('is part of each launch, and what it uses stays as long as the graph', async () => {
    const { owner, stream } = twice()
    const back = Tensor.zeros([count], 'i32', cpu)
    const third = Tensor.zeros([count], 'i32', cpu)
    const source = Tensor.copyOf(numbers(1), [count], 'i32', cpu)
    const captured = (): Graph =>
      Graph.capture(owner, () => {
        const [first, second] = [Tensor.zeros([count], 'i32', gpuDevice()), onGpu(-1)]
        expect([stream.capturing, stream.recording]).toEqual([true, true])
        stream.delay(1)
        copyTensor(source, first, { stream })
        copyTensor(first, second, { stream })
        copyTensor(second, back, { stream })
        copyTensor(back, third, { stream })
        for (const { memory } of [first, second]) memory.close()
      })
    const graph = captured()
    expect([stream.capturing, stream.recording]).toEqual([false, false])
    for (const factor of [2, 3, 4]) {
      await useMemoryAgain(owner)
      new Int32Array(source.memory.arrayBuffer).set(numbers(factor))
      for (const tensor of [back, third]) new Int32Array(tensor.memory.arrayBuffer).fill(0)
      graph.launch(owner)
      await owner.synchronize()
      for (const tensor of [back, third]) expect(tensor.data).toEqual(numbers(factor))
    }
    graph.close()
    await stream.close()
    await owner.close()
  })

  test('outlives the wrapped stream', async () => {
    const back = Tensor.zeros([count], 'i32', cpu)
    const { owner, graph, gone } = await (async () => {
      const { owner, stream } = twice()
      const graph = Graph.capture(owner, () => {
        stream.delay(1)
        copyTensor(onGpu(5), back, { stream })
      })
      await stream.close()
      return { owner, graph, gone: new WeakRef(stream) }
    })()
    await useMemoryAgain(owner)
    expect(gone.deref()).toBeUndefined()
    graph.launch(owner)
    await owner.synchronize()
    expect(back.data).toEqual(numbers(5))
    graph.close()
    await owner.close()
  })

  test('gives its memory back when the graph goes', async () => {
    const gpu = gpuDevice()
    const { owner, stream } = twice()
    await useMemoryAgain(owner)
    const { usedBytes } = gpu.memoryUse
    const graph = Graph.capture(owner, () => {
      const tensor = Tensor.zeros([1 << 20], 'i32', gpu)
      copyTensor(tensor, Tensor.zeros([1 << 20], 'i32', gpu), { stream })
      tensor.memory.close()
    })
    await useMemoryAgain(owner)
    expect(gpu.memoryUse.usedBytes).toBeGreaterThan(usedBytes + 2 ** 22)
    graph.launch(owner)
    await owner.synchronize()
    graph.close()
    // The driver tells on a thread of its own, at some time.
    for (let i = 0; i < 1000 && gpu.memoryUse.usedBytes > usedBytes + 2 ** 22; i++) {
      await useMemoryAgain(owner)
    }
    expect(gpu.memoryUse.usedBytes).toBeLessThan(usedBytes + 2 ** 22)
    await stream.close()
    await owner.close()
  })

  test('fails where it failed, in each launch', async () => {
    const { owner, stream } = twice()
    const back = Tensor.zeros([count], 'i32', cpu)
    using graph = Graph.capture(owner, () => {
      stream.fail('ERR_MOE_EP_CAPACITY', 'too much')
      stream.delay(1)
      copyTensor(onGpu(1), back, { stream })
    })
    for (let i = 0; i < 2; i++) {
      await stream.synchronize()
      graph.launch(owner)
      expect(await codeOf(() => stream.synchronize())).toBe('ERR_MOE_EP_CAPACITY')
      await owner.synchronize()
    }
    await stream.close()
    await owner.close()
  })

  test('can wait for what was recorded before', async () => {
    const { owner, stream } = twice()
    const gpu = gpuDevice()
    await using other = gpu.createStream()
    const [from, to] = [onGpu(1), Tensor.zeros([count], 'i32', gpu)]
    const back = Tensor.zeros([count], 'i32', cpu)
    const event = new Event(gpu)
    other.delay(20_000)
    copyTensor(from, to, { stream: other })
    other.record(event)
    using graph = Graph.capture(owner, () => {
      stream.wait(event)
      copyTensor(to, back, { stream })
    })
    graph.launch(owner)
    await owner.synchronize()
    expect(back.data).toEqual(numbers(1))
    await stream.close()
    await owner.close()
  })

  test('can be recorded: whoever waits after the capture waits for the newest launch', async () => {
    const gpu = gpuDevice()
    const { owner, stream } = twice()
    await using other = gpu.createStream()
    await using host = cpu.createStream()
    const to = Tensor.zeros([count], 'i32', gpu)
    const back = Tensor.zeros([count], 'i32', cpu)
    const event = new Event(gpu)
    // Its events may have been others' before, which joined streams.
    Graph.capture(owner, () => Array.from({ length: 10 }, () => stream.record() && owner.record())).close()
    using graph = Graph.capture(owner, () => {
      copyTensor(onGpu(3), to, { stream })
      stream.record(event)
      // A wait of the same stream is none.
      stream.wait(event)
    })
    // Nothing was launched: it stands for the capture.
    await event.synchronize()
    expect(event.query()).toBe(true)
    const before = event.completedAtUs
    const hold = gpu.createStream()
    hold.delay(600_000_000)
    owner.follow(hold.record())
    graph.launch(owner)
    expect(event.query()).toBe(false)
    const waits = [event.synchronize(), event.synchronize()]
    for (const waiting of [other, host]) waiting.wait(event)
    copyTensor(to, back, { stream: other })
    // Those who wait already do not wait for a launch that comes later.
    const later = gpu.createStream()
    later.delay(600_000_000)
    owner.follow(later.record())
    graph.launch(owner)
    hold.abort()
    await Promise.all([...waits, host.synchronize(), other.synchronize()])
    expect(back.data).toEqual(numbers(3))
    expect(event.query()).toBe(false)
    later.abort()
    await owner.synchronize()
    await event.synchronize()
    expect(event.completedAtUs).toBeGreaterThan(before)
    await stream.close()
    await owner.close()
  })

  test('has the failure of a launch told by its events, and of that launch alone', async () => {
    const { owner, stream } = twice()
    const [gpu, event] = [gpuDevice(), new Event(gpuDevice())]
    await using other = gpu.createStream()
    const graphs = [true, false].map((fails) =>
      Graph.capture(owner, () => {
        if (fails) stream.fail('ERR_MOE_EP_CAPACITY', 'too much')
      }),
    )
    const recorded = Graph.capture(owner, () => {
      stream.delay(1)
      stream.record(event)
    })
    for (let round = 0; round < 3; round++) {
      for (const [graph, expected] of [
        [graphs[0]!, 'ERR_MOE_EP_CAPACITY'],
        [graphs[1]!, 'none'],
      ] as const) {
        graph.launch(owner)
        recorded.launch(owner)
        expect(await codeOf(() => event.synchronize())).toBe(expected)
        other.wait(event)
        expect(await codeOf(() => other.synchronize())).toBe(expected)
        // An ordinary event behind it tells, too.
        stream.delay(1)
        expect(await codeOf(() => stream.record().synchronize())).toBe(expected)
        expect(await codeOf(() => stream.synchronize())).toBe(expected)
      }
    }
    for (const graph of [...graphs, recorded]) graph.close()
    await stream.close()
    await owner.close()
  })

  test('is ordered by events between streams of the same capture', async () => {
    const [first, second] = [twice(), twice()]
    const to = Tensor.zeros([count], 'i32', gpuDevice())
    const back = Tensor.zeros([count], 'i32', cpu)
    using graph = Graph.capture(first.owner, () => {
      second.owner.wait(first.owner.record())
      first.stream.delay(20_000)
      copyTensor(onGpu(4), to, { stream: first.stream })
      second.stream.wait(first.stream.record())
      copyTensor(to, back, { stream: second.stream })
      first.owner.wait(second.owner.record())
    })
    graph.launch(first.owner)
    await first.owner.synchronize()
    expect(back.data).toEqual(numbers(4))
    for (const { stream } of [first, second]) await stream.close()
    for (const { owner } of [first, second]) await owner.close()
  })

  test('is refused where it cannot be recorded, and the capture goes on', async () => {
    const { owner, stream } = twice()
    const gpu = gpuDevice()
    await using other = gpu.createStream()
    await using host = cpu.createStream()
    const to = Tensor.zeros([count], 'i32', gpu)
    const back = Tensor.zeros([count], 'i32', cpu)
    using inner = Graph.capture(other, () => other.delay(1))
    const codes: Promise<string>[] = []
    using graph = Graph.capture(owner, () => {
      copyTensor(onGpu(6), to, { stream })
      const event = stream.record()
      for (const refused of [
        () => inner.launch(stream),
        () => Graph.capture(stream, () => {}),
        () => stream.synchronize(),
        () => stream.close(),
        () => event.synchronize(),
        () => other.wait(event),
        () => host.wait(event),
      ])
        codes.push(codeOf(refused))
      // All there is, of which the context has some: to look for what could be given back would take waiting for the device.
      codes.push(codeOf(() => gpu.allocate(gpu.memoryBytes, { zeroed: false })))
      copyTensor(to, back, { stream })
    })
    expect(await Promise.all(codes)).toEqual([...Array(7).fill('ERR_MOE_EP_CAPTURE'), 'ERR_MOE_EP_OUT_OF_MEMORY'])
    graph.launch(owner)
    await owner.synchronize()
    expect(back.data).toEqual(numbers(6))
    await other.synchronize()
    await stream.close()
    await owner.close()
  })

  test('ends early where the wrapped stream is aborted', async () => {
    const { owner, stream } = twice()
    using graph = Graph.capture(owner, () => stream.delay(600_000_000))
    graph.launch(owner)
    const end = owner.record()
    stream.abort()
    await owner.synchronize()
    expect(end.query()).toBe(true)
    graph.launch(owner)
    owner.record(end)
    await owner.synchronize()
    expect(end.query()).toBe(true)
    await owner.close()
  })
})
