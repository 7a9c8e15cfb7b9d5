import { describe, expect, test } from 'vitest'
import { Event, getDefaultDevice, Graph } from '../src/index.js'
import { rejection } from './support.js'

const device = getDefaultDevice()
const hourUs = 3_600_000_000

describe('a stream that is aborted', () => {
  test('ends running work, and every pending await hears of it', async () => {
    const stream = device.createStream({ threads: 2 })
    stream.delay(hourUs)
    const event = stream.record()
    const pending = [stream.synchronize(), event.synchronize(), stream.synchronize()].map(rejection)
    stream.delay(hourUs)
    stream.abort()
    stream.abort()
    expect((await Promise.all(pending)).map(({ code }) => code)).toEqual(Array(3).fill('ERR_MOE_EP_ABORTED'))
    expect(event.query()).toBe(true)
    expect((await rejection(stream.synchronize())).code).toBe('ERR_MOE_EP_RELEASED')
    await stream.close()
  })

  test('fails streams that wait for it, which work again afterwards', async () => {
    const stream = device.createStream({ threads: 1 })
    await using other = device.createStream({ threads: 1 })
    stream.delay(hourUs)
    other.wait(stream.record())
    other.delay(hourUs)
    const waiting = rejection(other.synchronize())
    stream.abort()
    expect((await waiting).code).toBe('ERR_MOE_EP_ABORTED')
    other.delay(1)
    await other.synchronize()
  })

  test('ends its own wait for another stream, and a graph in the middle', async () => {
    const slow = device.createStream({ threads: 1 })
    slow.delay(hourUs)
    const stream = device.createStream({ threads: 1 })
    const event = new Event(device)
    const graph = Graph.capture(stream, () => {
      stream.delay(hourUs)
      stream.delay(hourUs)
      stream.record(event)
    })
    graph.launch(stream)
    stream.wait(slow.record())
    const pending = rejection(stream.synchronize())
    stream.abort()
    expect((await pending).code).toBe('ERR_MOE_EP_ABORTED')
    expect((await rejection(event.synchronize())).code).toBe('ERR_MOE_EP_ABORTED')
    slow.abort()
  })
})
