import { Event, type Stream } from '@moe-ep/core'
import { type ProcessGroup, SymmetricMemory } from '@moe-ep/transport'
import type { Reading, Stopwatch } from './stopwatch.js'

const gateSignal = 0
const meetingSignal = 1

/**
 * Times what is enqueued on a stream, apart from the time that enqueuing takes: the stream is held by a gate until everything is
 * in its queue. Behind the gate all ranks meet on their streams, so that no rank's lateness counts as another one's work; from the first
 * rank that leaves the meeting the time counts on all.
 */
export class CpuStopwatch implements Stopwatch {
  readonly stream: Stream
  readonly #control: Stream
  readonly #memory: SymmetricMemory
  readonly #begin: Event
  readonly #end: Event
  #round = 0
  #meetings = 0

  private constructor(memory: SymmetricMemory, threads: number) {
    const { device } = memory
    this.stream = device.createStream({ threads })
    this.#control = device.createStream({ threads: 1 })
    this.#memory = memory
    this.#begin = new Event(device)
    this.#end = new Event(device)
  }

  /** Collective. */
  static async create(group: ProcessGroup, options: { readonly threads: number }): Promise<CpuStopwatch> {
    return new CpuStopwatch(await SymmetricMemory.create(group, { byteLength: 0, numSignals: 2 }), options.threads)
  }

  /** Collective. */
  async time(enqueue: () => unknown): Promise<Reading> {
    const { stream } = this
    const { rank } = this.#memory.group
    const value = ++this.#round
    this.#memory.wait({ index: gateSignal, value, what: 'bench gate', stream })
    // The first meeting wakes ranks that sleep, the second one finds all of them awake.
    this.#meet()
    this.#meet()
    stream.record(this.#begin)
    let pending: unknown
    let hostUs: number
    try {
      const began = performance.now()
      pending = enqueue()
      hostUs = (performance.now() - began) * 1000
      stream.record(this.#end)
    } finally {
      this.#memory.signal({ peer: rank, index: gateSignal, value, stream: this.#control })
    }
    await pending
    await stream.synchronize()
    return { streamUs: this.#end.completedAtUs - (await this.#firstBegin()), hostUs }
  }

  async close(): Promise<void> {
    await this.stream.close()
    await this.#control.close()
    this.#memory.close()
  }

  /**
   * When the first rank began. Where there are fewer cores than ranks some begin when others have ended: what each takes by itself would
   * not say how long all of them take.
   */
  async #firstBegin(): Promise<number> {
    const { group } = this.#memory
    const begin = this.#begin.completedAtUs
    if (group.worldSize === 1) return begin
    const begins = await group.allGather(new Uint8Array(Float64Array.of(begin).buffer))
    return Math.min(...begins.map((bytes) => new Float64Array(bytes.slice().buffer)[0]!))
  }

  #meet(): void {
    const { worldSize } = this.#memory.group
    this.#meetings++
    for (let peer = 0; peer < worldSize; peer++) {
      this.#memory.atomicAdd({ peer, index: meetingSignal, delta: 1, stream: this.stream })
    }
    const value = this.#meetings * worldSize
    this.#memory.wait({ index: meetingSignal, value, what: 'bench meeting', stream: this.stream })
  }
}
