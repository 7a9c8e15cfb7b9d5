import { describe, expect, test } from 'vitest'
import { Event, getDefaultDevice, getDevice, Graph } from '../src/index.js'
import { rejection } from './support.js'

const device = getDefaultDevice()
const hourUs = 3_600_000_000

describe('an event that is recorded again', () => {
  test('on another stream that gets there first: who waited before goes on waiting', async () => {
    const slow = device.createStream({ threads: 1 })
    await using quick = device.createStream({ threads: 1 })
    await using waiting = device.createStream({ threads: 1 })
    const event = new Event(device)
    slow.delay(hourUs)
    slow.record(event)
    waiting.wait(event)
    const done = waiting.record()
    const first = rejection(event.synchronize())
    expect(event.query()).toBe(false)

    quick.record(event)
    await event.synchronize()
    expect(event.query()).toBe(true)
    expect(event.completedAtUs).toBeGreaterThan(0)
    expect(done.query()).toBe(false)
    slow.abort()
    expect((await first).code).toBe('ERR_MOE_EP_ABORTED')
    expect((await rejection(waiting.synchronize())).code).toBe('ERR_MOE_EP_ABORTED')
    await event.synchronize()
  })

  test('a wait gets the failure of its own recording, not of an earlier or a later one', async () => {
    await using failing = device.createStream({ threads: 1 })
    await using sound = device.createStream({ threads: 1 })
    await using before = device.createStream({ threads: 1 })
    await using after = device.createStream({ threads: 1 })
    const event = new Event(device)
    sound.record(event)
    before.delay(20_000)
    before.wait(event)
    failing.fail('ERR_MOE_EP_CAPACITY', 'full')
    failing.record(event)
    expect((await rejection(event.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    expect((await rejection(failing.synchronize())).code).toBe('ERR_MOE_EP_CAPACITY')
    await before.synchronize()
    failing.record(event)
    after.wait(event)
    await after.synchronize()
  })

  test('an event without a recording is complete, and nobody waits for it', async () => {
    await using stream = device.createStream({ threads: 1 })
    const event = new Event(device)
    expect([event.query(), event.completedAtUs]).toEqual([true, 0])
    await event.synchronize()
    stream.wait(event)
    await stream.synchronize()
  })
})

describe('an event that was recorded in a graph', () => {
  test('stands for the newest launch as soon as the launch is enqueued', async () => {
    const stream = device.createStream({ threads: 1 })
    await using other = device.createStream({ threads: 1 })
    const event = new Event(device)
    const graph = Graph.capture(stream, () => {
      stream.delay(1)
      stream.record(event)
    })
    expect([event.query(), event.completedAtUs]).toEqual([true, 0])
    graph.launch(other)
    await event.synchronize()
    const firstUs = event.completedAtUs
    expect(firstUs).toBeGreaterThan(0)

    stream.delay(hourUs)
    graph.launch(stream)
    other.wait(event)
    const otherDone = other.record()
    const launched = rejection(event.synchronize())
    expect([event.query(), otherDone.query()]).toEqual([false, false])
    stream.abort()
    expect((await launched).code).toBe('ERR_MOE_EP_ABORTED')
    expect((await rejection(other.synchronize())).code).toBe('ERR_MOE_EP_ABORTED')
    graph.launch(other)
    await event.synchronize()
    expect(event.completedAtUs).toBeGreaterThan(firstUs)
  })

  // A cuda device runs the launches of one graph one after the other.
  test('stands for a launch on the cpu that overtakes another one', async () => {
    const cpu = getDevice('cpu')
    const stream = cpu.createStream({ threads: 1 })
    await using quick = cpu.createStream({ threads: 1 })
    const event = new Event(cpu)
    const graph = Graph.capture(stream, () => void stream.record(event))
    stream.delay(hourUs)
    graph.launch(stream)
    const launched = rejection(event.synchronize())
    graph.launch(quick)
    await event.synchronize()
    expect(event.query()).toBe(true)
    stream.abort()
    expect((await launched).code).toBe('ERR_MOE_EP_ABORTED')
  })

  test('is not moved by a launch that a closed stream refused', async () => {
    const stream = device.createStream({ threads: 1 })
    const event = new Event(device)
    const graph = Graph.capture(stream, () => void stream.record(event))
    await stream.close()
    expect(() => graph.launch(stream)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' }))
    expect(event.query()).toBe(true)
    await event.synchronize()
  })
})
