import { type Device, Event, type Stream } from '@moe-ep/core'
import type { Meeting } from './meeting.js'
import type { Reading, Stopwatch } from './stopwatch.js'

const shortGateUs = 500
/** Of ranks that are measured together: a rank that is late in enqueuing must not hold the others up in the midst of their work. */
const togetherGateUs = 2000
const longestGateUs = 50_000

/**
 * Times work of one device: the stream pauses while the work is enqueued behind it, so that kernels follow one another without a gap.
 * The pause has an end of its own: a queue that is full cannot block for ever.
 *
 * With a meeting it times what all ranks do together: behind the pause their streams meet, so that no rank's lateness counts as
 * another one's work.
 */
export class CudaStopwatch implements Stopwatch {
  readonly stream: Stream
  readonly #meeting: Meeting | undefined
  readonly #begin: Event
  readonly #end: Event
  #gateUs: number

  constructor(device: Device, meeting?: Meeting) {
    this.stream = device.createStream()
    this.#meeting = meeting
    this.#begin = new Event(device)
    this.#end = new Event(device)
    this.#gateUs = meeting === undefined ? shortGateUs : togetherGateUs
  }

  /** With a meeting: collective. */
  async time(enqueue: () => unknown, gateUs = this.#gateUs): Promise<Reading> {
    const { stream } = this
    // Ranks that share a GPU would wait there for the whole time that their hosts are apart.
    await this.#meeting?.group.barrier({ label: 'bench iteration' })
    stream.delay(Math.ceil(gateUs))
    this.#meeting?.enqueue(stream)
    stream.record(this.#begin)
    const began = performance.now()
    const pending = enqueue()
    const hostUs = (performance.now() - began) * 1000
    stream.record(this.#end)
    await pending
    await stream.synchronize()
    if (this.#meeting !== undefined) this.#gateUs = nextGateUs(this.#gateUs, hostUs)
    return { streamUs: this.#end.completedAtUs - this.#begin.completedAtUs, hostUs }
  }

  async close(): Promise<void> {
    await this.stream.close()
    this.#meeting?.close()
  }
}

/** Twice as long as what was just enqueued took, and no sudden fall: what takes turns with it may take longer. */
export function nextGateUs(gateUs: number, hostUs: number): number {
  return Math.min(longestGateUs, Math.max(togetherGateUs, 0.8 * gateUs, 100 + 2 * hostUs))
}
