import { type Device, Event, type Stream } from '@moe-ep/core'
import type { Reading, Stopwatch } from './stopwatch.js'

const shortGateUs = 500

/**
 * Times work of one device: the stream pauses while the work is enqueued behind it, so that kernels follow one another without a gap.
 * The pause has an end of its own: a queue that is full cannot block for ever.
 */
export class CudaStopwatch implements Stopwatch {
  readonly stream: Stream
  readonly #begin: Event
  readonly #end: Event

  constructor(device: Device) {
    this.stream = device.createStream()
    this.#begin = new Event(device)
    this.#end = new Event(device)
  }

  async time(enqueue: () => unknown, gateUs = shortGateUs): Promise<Reading> {
    const { stream } = this
    stream.delay(Math.ceil(gateUs))
    stream.record(this.#begin)
    const began = performance.now()
    const pending = enqueue()
    const hostUs = (performance.now() - began) * 1000
    stream.record(this.#end)
    await pending
    await stream.synchronize()
    return { streamUs: this.#end.completedAtUs - this.#begin.completedAtUs, hostUs }
  }

  async close(): Promise<void> {
    await this.stream.close()
  }
}
