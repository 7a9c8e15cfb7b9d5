import { describe, expect, test } from 'vitest'
import { Event, getDefaultDevice, getDevice, Graph, MoeEpError, Tensor, wrapArrayBuffer } from '../src/index.js'

const device = getDefaultDevice()
const cpu = getDevice('cpu')
const rejection = async (promise: Promise<unknown>): Promise<MoeEpError> => {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!MoeEpError.isInstance(error)) throw new Error(`expected a MoeEpError, got ${String(error)}`)
  return error
}

describe('streams', () => {
  test('run work in order and off the JavaScript thread', async () => {
    await using stream = device.createStream({ threads: 2 })
    const first = stream.record()
    stream.delay(20_000)
    const second = stream.record()
    expect(second.query()).toBe(false)
    await stream.synchronize()
    expect(second.query()).toBe(true)
    expect(second.completedAtUs - first.completedAtUs).toBeGreaterThanOrEqual(20_000)
  })

  test('wait for events of other streams', async () => {
    await using slow = device.createStream()
    await using fast = device.createStream()
    slow.delay(10_000)
    const slowDone = slow.record()
    fast.wait(slowDone)
    const fastDone = fast.record()
    await fastDone.synchronize()
    expect(fastDone.completedAtUs).toBeGreaterThanOrEqual(slowDone.completedAtUs)
  })

  test('a failure skips later work, rejects the next await once, and reaches waiting streams', async () => {
    await using stream = device.createStream()
    await using other = device.createStream()
    stream.fail('ERR_MOE_EP_CAPACITY', 'too many rows')
    const event = stream.record()
    stream.delay(60_000_000) // skipped, or the test would time out
    other.wait(event)
    expect((await rejection(event.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    expect((await rejection(stream.synchronize())).message).toBe('too many rows')
    expect((await rejection(other.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    await stream.synchronize()
    await other.synchronize()
  })

  test('a failure does not reach streams that only follow', async () => {
    await using stream = device.createStream()
    await using other = device.createStream()
    stream.delay(20_000)
    stream.fail('ERR_MOE_EP_CAPACITY', 'too many rows')
    const event = stream.record()
    other.follow(event)
    const followed = other.record()
    await other.synchronize()
    expect(event.query()).toBe(true)
    expect(followed.completedAtUs).toBeGreaterThanOrEqual(event.completedAtUs)
    expect((await rejection(stream.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
  })

  test('a wait can be given up by time or by signal; the work goes on', async () => {
    await using stream = device.createStream()
    stream.delay(50_000)
    expect((await rejection(stream.synchronize({ timeoutMs: 1 }))).code).toBe('ERR_MOE_EP_TIMEOUT')
    const aborted = rejection(stream.synchronize({ signal: AbortSignal.abort('enough') }))
    expect((await aborted).code).toBe('ERR_MOE_EP_ABORTED')
    await stream.synchronize()
  })

  test('closed streams and memories say so', async () => {
    const stream = device.createStream()
    await stream.close()
    await stream.close()
    expect(() => stream.delay(1)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' }))
    const memory = cpu.allocate(16)
    const view = memory.arrayBuffer
    memory.close()
    expect(view.byteLength).toBe(0)
    expect(() => memory.arrayBuffer).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' }))
  })

  test('abort drops queued work', async () => {
    const stream = device.createStream()
    stream.delay(1000)
    stream.delay(600_000_000)
    stream.abort()
    expect(stream.closed).toBe(true)
  })

  test.each([0, 257, 1.5, NaN])('refuse %s threads', (threads) => {
    expect(() => cpu.createStream({ threads })).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
  })
})

describe('graphs', () => {
  test('record instead of run, and replay in order over joined streams', async () => {
    await using main = device.createStream()
    await using side = device.createStream()
    const fork = new Event(device)
    const join = new Event(device)
    const graph = Graph.capture(main, () => {
      main.record(fork)
      side.wait(fork)
      side.delay(5000)
      side.record(join)
      main.wait(join)
    })
    expect(graph.size).toBe(3)
    expect(join.completedAtUs).toBe(0)
    for (let i = 0; i < 3; i++) graph.launch(main)
    await main.synchronize()
    expect(join.completedAtUs - fork.completedAtUs).toBeGreaterThanOrEqual(5000)
  })

  test('refuse what cannot be recorded', async () => {
    await using stream = device.createStream()
    await using side = device.createStream()
    expect(() => Graph.capture(stream, () => void stream.synchronize().catch(() => {}))).not.toThrow()
    const unjoined = (): Graph =>
      Graph.capture(stream, () => {
        side.wait(stream.record())
        side.delay(1)
      })
    expect(unjoined).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_CAPTURE' }))
    const asynchronous = (): Graph => Graph.capture(stream, (async () => {}) as () => void)
    expect(asynchronous).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_CAPTURE' }))
    const nested = (): Graph => Graph.capture(stream, () => void Graph.capture(stream, () => {}))
    expect(nested).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_CAPTURE' }))
    stream.delay(1)
    await stream.synchronize()
    const inside: Promise<MoeEpError>[] = []
    Graph.capture(stream, () => void inside.push(rejection(stream.synchronize())))
    expect((await inside[0]!).code).toBe('ERR_MOE_EP_CAPTURE')
  })

  test('skip the rest of a replay after a failure, and work again after it was reported', async () => {
    await using stream = device.createStream()
    const graph = Graph.capture(stream, () => {
      stream.fail('ERR_MOE_EP_CAPACITY', 'full')
      stream.delay(60_000_000)
    })
    graph.launch(stream)
    expect((await rejection(stream.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    await stream.synchronize()
  })
})

describe('tensors', () => {
  test('view memory without copies', () => {
    const stored = new Uint16Array([0x3f80, 0x4000, 0x4040, 0x4080])
    const tensor = Tensor.wrap(stored, [2, 2], 'bf16')
    expect(tensor.toNumbers()).toEqual(new Float32Array([1, 2, 3, 4]))
    expect(tensor.slice(1, 2).toNumbers()).toEqual(new Float32Array([3, 4]))
    stored[3] = 0
    expect(tensor.reshape([4]).toNumbers()).toEqual(new Float32Array([1, 2, 3, 0]))
    expect(Tensor.from([1n, -2n], [2], 'i64', cpu).data).toEqual(new BigInt64Array([1n, -2n]))
    expect(Tensor.zeros([0, 7], 'f32', cpu).toNumbers()).toEqual(new Float32Array(0))
  })

  test('refuse views outside their memory and bad shapes', () => {
    const memory = wrapArrayBuffer(cpu, new Uint8Array(8))
    const code = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
    expect(() => new Tensor({ memory, dtype: 'f32', shape: [3] })).toThrow(code)
    expect(() => new Tensor({ memory, dtype: 'f32', shape: [2], byteOffset: 1 })).toThrow(code)
    expect(() => new Tensor({ memory, dtype: 'f32', shape: [-1] })).toThrow(code)
    expect(() => new Tensor({ memory, dtype: 'f32', shape: [1.5] })).toThrow(code)
    expect(() => new Tensor({ memory, dtype: 'u8', shape: [2, 2], strides: [7, 1] })).toThrow(code)
    expect(() => Tensor.from([1, 2, 3], [2, 2], 'f32')).toThrow(code)
    expect(() => new Tensor({ memory, dtype: 'u8', shape: [1, 1, 1, 1, 1, 1, 1] })).toThrow(code)
  })
})
