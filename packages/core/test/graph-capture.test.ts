import { afterEach, describe, expect, test } from 'vitest'
import { Event, getDefaultDevice, Graph, type Stream } from '../src/index.js'

const device = getDefaultDevice()
const misuse = expect.objectContaining({ code: 'ERR_MOE_EP_CAPTURE' })
const released = expect.objectContaining({ code: 'ERR_MOE_EP_RELEASED' })
const streams: Stream[] = []
const newStream = (): Stream => {
  const stream = device.createStream({ threads: 1 })
  streams.push(stream)
  return stream
}
afterEach(async () => void (await Promise.all(streams.splice(0).map((stream) => stream.close()))))

describe('a capture is refused', () => {
  test('when a side stream has work after the event that joins it back', () => {
    const [main, side] = [newStream(), newStream()]
    const capture = (): Graph =>
      Graph.capture(main, () => {
        side.wait(main.record())
        const joint = side.record()
        side.delay(1)
        main.wait(joint)
      })
    expect(capture).toThrow(misuse)
    expect([main.capturing, side.capturing]).toEqual([false, false])
  })

  test('when a side stream is joined to another one only, which never joins the origin', () => {
    const [main, side, third] = [newStream(), newStream(), newStream()]
    const capture = (): Graph =>
      Graph.capture(main, () => {
        side.wait(main.record())
        side.delay(1)
        third.wait(side.record())
      })
    expect(capture).toThrow(misuse)
  })

  test('when the event was recorded again before the join, elsewhere', () => {
    const [main, side, third] = [newStream(), newStream(), newStream()]
    const event = new Event(device)
    const capture = (): Graph =>
      Graph.capture(main, () => {
        main.record(event)
        side.wait(event)
        third.wait(event)
        side.delay(1)
        side.record(event)
        third.record(event)
        main.wait(event)
      })
    expect(capture).toThrow(misuse)
  })

  test('when a stream of one waits for an event of another', () => {
    const [first, second] = [newStream(), newStream()]
    const capture = (): Graph =>
      Graph.capture(first, () => {
        const event = first.record()
        Graph.capture(second, () => second.wait(event))
      })
    expect(capture).toThrow(misuse)
    expect([first.capturing, second.capturing]).toEqual([false, false])
  })
})

describe('a capture is accepted', () => {
  test('when work is joined back through a chain of streams, in any order', async () => {
    const [main, side, third] = [newStream(), newStream(), newStream()]
    const graph = Graph.capture(main, () => {
      side.wait(main.record())
      side.delay(1)
      third.wait(side.record())
      third.delay(1)
      main.delay(1)
      main.wait(third.record())
    })
    expect(graph.size).toBe(6)
    expect(graph.operations).toBe(3)
    graph.launch(side)
    await side.synchronize()
  })

  test('with a wait for work outside of it, which every launch waits for', async () => {
    const [main, outside] = [newStream(), newStream()]
    outside.delay(20_000)
    const before = outside.record()
    const graph = Graph.capture(main, () => main.wait(before))
    graph.launch(main)
    const after = main.record()
    graph.launch(main)
    await main.synchronize()
    expect(after.completedAtUs).toBeGreaterThanOrEqual(before.completedAtUs)
  })
})

test('streams say whether they are captured', () => {
  const [main, side, other] = [newStream(), newStream(), newStream()]
  const state = (): boolean[] => [main, side, other].map((stream) => stream.capturing)
  const seen: boolean[][] = [state()]
  Graph.capture(main, () => {
    seen.push(state())
    side.wait(main.record())
    seen.push(state())
    main.wait(side.record())
  })
  seen.push(state())
  expect(seen).toEqual([
    [false, false, false],
    [true, false, false],
    [true, true, false],
    [false, false, false],
  ])
})

test('a closed graph cannot be launched; a launch that is queued still runs', async () => {
  const stream = newStream()
  const event = new Event(device)
  let outer: Graph
  {
    using graph = Graph.capture(stream, () => {
      stream.delay(1000)
      stream.record(event)
    })
    outer = graph
    graph.launch(stream)
  }
  outer.close()
  expect(() => outer.launch(stream)).toThrow(released)
  expect(() => outer.size).toThrow(released)
  expect(() => outer.operations).toThrow(released)
  await stream.synchronize()
  expect(event.completedAtUs).toBeGreaterThan(0)
})
