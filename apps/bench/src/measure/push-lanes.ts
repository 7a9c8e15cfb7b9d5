import { Graph, type Stream } from '@moe-ep/core'
import type { BenchContext } from '../operations/operation.js'
import type { Push } from './push-plan.js'
import type { Scope } from './scope.js'

/**
 * How pushes to several peers are put on a stream. On the cpu they follow one another, for one alone uses all threads. A GPU copies to
 * one peer at a time on a stream, so there each peer has a stream of its own.
 */
export class PushLanes {
  readonly #stream: Stream
  readonly #lanes = new Map<number, Stream>()

  constructor({ device, stopwatch }: BenchContext, scope: Scope, peers: Iterable<number>) {
    this.#stream = stopwatch.stream
    if (device.kind === 'cpu') return
    for (const peer of peers) this.#lanes.set(peer, scope.own(device.createStream()))
  }

  /** All pushes as one graph; `put` enqueues one of them. */
  capture(scope: Scope, pushes: readonly Push[], put: (push: Push, stream: Stream) => void): Graph {
    const stream = this.#stream
    const body = (): void => {
      for (const push of pushes) put(push, this.#lanes.get(push.peer) ?? stream)
    }
    return scope.own(Graph.capture(stream, () => this.#alongside(body)))
  }

  /** The lanes begin where the stream is, and the stream goes on when all of them are done. */
  #alongside(body: () => void): void {
    const lanes = [...this.#lanes.values()]
    if (lanes.length === 0) return body()
    const begin = this.#stream.record()
    for (const lane of lanes) lane.wait(begin)
    body()
    for (const lane of lanes) this.#stream.wait(lane.record())
  }
}
