import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import {
  copyTensor,
  type CudaDevice,
  Event,
  getDefaultDevice,
  getDevice,
  Graph,
  listDevices,
  Plan,
  Tensor,
} from '../src/index.js'
import { collectHandles } from './collect.js'

const device = getDefaultDevice()
const cpu = getDevice('cpu')
const hasGpu = requires('cuda', () => {
  const gpu = listDevices().find(({ name, available }) => name === 'cuda:0' && available)
  return gpu !== undefined || (listDevices().at(-1)?.reason ?? 'no reason')
})

const counting = (count: number): Int32Array => Int32Array.from({ length: count }, (_, i) => i)

describe('things that nobody holds any more', () => {
  test('events of a stream that is gone can be awaited, again and again', async () => {
    const recorded = async (): Promise<{ event: Event; stream: WeakRef<object> }> => {
      const stream = device.createStream()
      stream.delay(1000)
      const event = stream.record()
      await stream.close()
      return { event, stream: new WeakRef(stream) }
    }
    const { event, stream } = await recorded()
    await collectHandles()
    expect(stream.deref()).toBeUndefined()
    for (let i = 0; i < 5; i++) {
      await event.synchronize({ timeoutMs: 10_000 })
      await turn()
    }
    expect(event.query()).toBe(true)
  })

  test.each(['closed', 'collected'])('a graph that is %s still does what was launched', async (way) => {
    await using stream = device.createStream()
    for (let i = 0; i < 2; i++) {
      const from = Tensor.copyOf(counting(5000), [5000], 'i32', device)
      const to = Tensor.zeros([5000], 'i32', cpu)
      const end = new Event(device)
      const launch = async (): Promise<WeakRef<object>> => {
        const graph = Graph.capture(stream, () => {
          stream.delay(400_000)
          copyTensor(from, to, { stream })
          stream.record(end)
        })
        // What the capture itself still held goes first.
        for (let k = 0; k < 3; k++) {
          await stream.synchronize()
          Tensor.zeros([1], 'i32', device).memory.close()
        }
        graph.launch(stream)
        if (way === 'closed') graph.close()
        return new WeakRef(graph)
      }
      const graph = await launch()
      const other = device.createStream()
      const meanwhile = other.record()
      await other.close()
      await collectHandles()
      expect(graph.deref()).toBeUndefined()
      // What the graph held would be used again by these.
      const plans = Array.from({ length: 50 }, () =>
        Plan.of(stream, () => copyTensor(from, Tensor.zeros([5000], 'i32', cpu), { stream })),
      )
      for (let k = 0; k < 50; k++) Tensor.zeros([5000], 'i32', device).memory.close()
      expect(end.query()).toBe(false)
      await stream.synchronize()
      expect(to.data).toEqual(counting(5000))
      expect(end.query()).toBe(true)
      expect(end.completedAtUs).toBeGreaterThan(meanwhile.completedAtUs)
      for (const plan of plans) plan.close()
    }
  })

  test.skipIf(!hasGpu)(
    'a wrapped stream does not touch its owner when that captures, nor after it was closed',
    async () => {
      const gpu = getDevice('cuda:0') as CudaDevice
      await using own = gpu.createStream()
      const foreign = gpu.wrapStream(own.cudaHandle)
      foreign.delay(50)
      await foreign.synchronize()
      // Memory that goes back makes the device ask all streams for their ends, which would end a capture.
      const captured = async (): Promise<void> => {
        using graph = Graph.capture(own, () => {
          own.delay(1)
          for (let i = 0; i < 200; i++) Tensor.zeros([1000], 'i32', gpu).memory.close()
          own.delay(1)
        })
        expect(graph.operations).toBe(2)
        graph.launch(own)
        await own.synchronize()
      }
      await captured()
      await foreign.close()
      await captured()
      await collectHandles()
      await captured()
    },
  )

  test.skipIf(!hasGpu)(
    'what a stream uses stays while somebody else captures that stream, and goes back afterwards',
    async () => {
      const gpu = getDevice('cuda:0') as CudaDevice
      await using own = gpu.createStream()
      await using other = gpu.wrapStream(own.cudaHandle)
      const count = 100_000
      const to = Tensor.zeros([count], 'i32', gpu)
      const { usedBytes } = gpu.memoryUse
      const from = Tensor.copyOf(counting(count), [count], 'i32', gpu)
      own.delay(300_000)
      copyTensor(from, to, { stream: own })
      from.memory.close()
      let refusal: Promise<unknown> | undefined
      using graph = Graph.capture(other, () => {
        other.delay(1)
        for (let i = 0; i < 200; i++) Tensor.zeros([count], 'i32', gpu).memory.close()
      })
      using second = Graph.capture(own, () => {
        own.delay(1)
        refusal = other.synchronize().catch((error: unknown) => error)
      })
      expect(await refusal).toMatchObject({ code: 'ERR_MOE_EP_CAPTURE' })
      expect([graph.operations, second.operations]).toEqual([1, 1])
      expect(await to.read({ stream: own })).toEqual(counting(count))
      for (let looks = 0; looks < 100 && gpu.memoryUse.usedBytes > usedBytes; looks++) {
        Tensor.zeros([1], 'i32', gpu).memory.close()
        await own.synchronize()
      }
      expect(gpu.memoryUse.usedBytes).toBeLessThan(usedBytes + 4 * count)
    },
  )
})
