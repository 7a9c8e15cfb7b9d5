import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { afterAll, afterEach, describe, expect, test } from 'vitest'
import { getDevice, Graph, type OperationTrace, Plan, traceHostWork, traceOperation } from '../src/index.js'

const stream = getDevice('cpu').createStream({ threads: 1 })
afterAll(() => stream.close())

const traces: OperationTrace[] = []
const listen = (message: unknown): void => void traces.push(message as OperationTrace)
afterEach(() => {
  unsubscribe('moe-ep:operation', listen)
  traces.length = 0
})

describe('tracing', () => {
  test('gives the span of an operation on its stream, its result and its bytes', async () => {
    subscribe('moe-ep:operation', listen)
    const known: { bytes?: number } = {}
    const result = traceOperation(
      'test.delay',
      stream,
      () => known.bytes,
      () => {
        stream.delay(5_000)
        return 'result'
      },
    )
    expect(result).toBe('result')
    known.bytes = 12
    await stream.synchronize()
    const [{ name, begin, end, bytes, stream: traced }] = traces as [OperationTrace]
    expect([traces.length, name, traced, bytes()]).toEqual([1, 'test.delay', stream, 12])
    expect(end.completedAtUs - begin.completedAtUs).toBeGreaterThanOrEqual(5_000)
  })

  test('spans work of the host between two points of a stream', async () => {
    subscribe('moe-ep:operation', listen)
    const done = traceHostWork('test.host', stream, 7)
    expect(traces).toEqual([])
    stream.delay(1_000)
    done()
    await stream.synchronize()
    expect(traces.map(({ name, bytes }) => [name, bytes()])).toEqual([['test.host', 7]])
    expect(traces[0]!.end.completedAtUs - traces[0]!.begin.completedAtUs).toBeGreaterThanOrEqual(1_000)
  })

  test('records nothing when nobody listens', () => {
    const untouched = { record: () => expect.unreachable('an event was recorded') } as unknown as typeof stream
    expect(traceOperation('test', untouched, 1, () => 3)).toBe(3)
    traceHostWork('test', untouched, undefined)()
    expect(traces).toEqual([])
  })

  test('what a plan keeps is not told, and what a graph records is told once', async () => {
    subscribe('moe-ep:operation', listen)
    const operate = (): void => traceOperation('test.delay', stream, undefined, () => stream.delay(1_000))
    expect(stream.recording).toBe(false)
    using plan = Plan.of(stream, () => {
      expect([stream.recording, stream.capturing]).toEqual([true, false])
      operate()
    })
    expect(plan.size).toBe(1)
    plan.launch(stream)
    expect(traces).toEqual([])
    using graph = Graph.capture(stream, () => {
      expect([stream.recording, stream.capturing]).toEqual([true, true])
      operate()
    })
    for (let launch = 0; launch < 2; launch++) {
      graph.launch(stream)
      await stream.synchronize()
      expect(traces.map(({ name, begin, end }) => [name, end.completedAtUs - begin.completedAtUs >= 1_000])).toEqual([
        ['test.delay', true],
      ])
    }
  })

  test('an operation that is refused is no operation', () => {
    subscribe('moe-ep:operation', listen)
    const refuse = (): never => {
      throw new Error('refused')
    }
    expect(() => traceOperation('test', stream, undefined, refuse)).toThrow('refused')
    expect(traces).toEqual([])
  })
})
