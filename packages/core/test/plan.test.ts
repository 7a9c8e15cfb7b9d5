import { expect, test } from 'vitest'
import { copyTensor, getDefaultDevice, Graph, Plan, Tensor } from '../src/index.js'
import { rejection } from './support.js'

const device = getDefaultDevice()
const misuse = expect.objectContaining({ code: 'ERR_MOE_EP_CAPTURE' })
const released = expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' })

test('a plan runs nothing when it is made, and its operations in order with every launch', async () => {
  await using stream = device.createStream()
  await using other = device.createStream()
  const [first, second, third] = [
    [1, 2],
    [0, 0],
    [0, 0],
  ].map((numbers) => Tensor.from(numbers, [2], 'f32'))
  const plan = Plan.of(stream, () => {
    copyTensor(first!, second!, { stream })
    copyTensor(second!, third!, { stream })
  })
  expect(plan.size).toBe(2)
  expect([...(await third!.read({ stream }))]).toEqual([0, 0])
  plan.launch(stream)
  expect([...(await third!.read({ stream }))]).toEqual([1, 2])
  copyTensor(Tensor.from([3, 4], [2], 'f32'), first!, { stream })
  await stream.synchronize()
  plan.launch(other)
  expect([...(await third!.read({ stream: other }))]).toEqual([3, 4])
  expect(plan.launchTimes(stream, 10)).toBeGreaterThan(0)
  await stream.synchronize()
})

test('a plan can be part of a graph', async () => {
  await using stream = device.createStream()
  const [from, to] = [Tensor.from([5], [1], 'f32'), Tensor.zeros([1], 'f32')]
  const plan = Plan.of(stream, () => copyTensor(from, to, { stream }))
  using graph = Graph.capture(stream, () => plan.launch(stream))
  plan.close()
  expect(graph.size).toBe(1)
  expect([...(await to.read({ stream }))]).toEqual([0])
  graph.launch(stream)
  expect([...(await to.read({ stream }))]).toEqual([5])
})

test('a closed plan cannot be launched; a launch that is queued still runs', async () => {
  await using stream = device.createStream()
  const to = Tensor.zeros([1], 'f32')
  const plan = Plan.of(stream, () => copyTensor(Tensor.from([6], [1], 'f32'), to, { stream }))
  stream.delay(2000)
  plan.launch(stream)
  plan.close()
  expect(() => plan.launch(stream)).toThrow(released)
  expect([...(await to.read({ stream }))]).toEqual([6])
})

test('what a plan cannot hold is refused, and the stream works on', async () => {
  await using stream = device.createStream()
  expect(() => Plan.of(stream, () => void stream.record())).toThrow(misuse)
  expect(() => Plan.of(stream, () => stream.wait(device.defaultStream.record()))).toThrow(misuse)
  expect(() => Plan.of(stream, () => void Plan.of(stream, () => {}))).toThrow(misuse)
  expect(() => Plan.of(stream, () => void Graph.capture(stream, () => {}))).toThrow(misuse)
  expect(() => Plan.of(stream, (async () => {}) as () => void)).toThrow(misuse)
  expect(() => Graph.capture(stream, () => void Plan.of(stream, () => {}))).toThrow(misuse)
  stream.delay(1)
  await stream.synchronize()
})

test('a planned operation fails the stream as any other', async () => {
  await using stream = device.createStream()
  const plan = Plan.of(stream, () => stream.fail('ERR_MOE_EP_CAPACITY', 'full'))
  await stream.synchronize()
  plan.launch(stream)
  expect((await rejection(stream.synchronize())).message).toBe('full')
  await stream.synchronize()
})
