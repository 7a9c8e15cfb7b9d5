import { startDeadline } from './deadline.js'
import type { FailureReport } from './failure-report.js'
import type { FrameChannel } from './frame-channel.js'
import { tellFailure } from './hub-link.js'
import { farewellTimeoutMs, verdictTimeoutMs } from './limits.js'
import {
  type Contribution,
  type Link,
  type LinkEvents,
  describeCollective,
  leftReport,
  lostReport,
  protocolReport,
} from './link.js'
import { type Message, encodeMessage } from './messages.js'

interface Waiting {
  readonly contribution: Contribution
  readonly parts: Uint8Array[]
  numParts: number
  cancelVerdict: () => void
}

/** The link of a rank other than 0: one connection, to rank 0. */
export class SpokeLink implements Link {
  readonly #channel: FrameChannel
  readonly #rank: number
  readonly #worldSize: number
  readonly #waiting = new Map<number, Waiting>()
  #events: LinkEvents | undefined
  #hubLeft = false
  #over = false

  constructor(channel: FrameChannel, rank: number, worldSize: number) {
    this.#channel = channel
    this.#rank = rank
    this.#worldSize = worldSize
  }

  start(events: LinkEvents): void {
    this.#events = events
    this.#channel.handle({
      message: (message) => this.#receive(message),
      ended: (cause) => {
        if (!this.#hubLeft) this.#failAll(lostReport(0, cause))
      },
    })
  }

  contribute(contribution: Contribution): void {
    const { sequence, bytes } = contribution
    const parts: Uint8Array[] = []
    parts[this.#rank] = bytes
    this.#waiting.set(sequence, { contribution, parts, numParts: 1, cancelVerdict: () => {} })
    if (this.#hubLeft) return this.#failAll(leftReport(describeCollective(contribution), 0))
    this.#channel.send(encodeMessage({ type: 'contribute', ...contribution }))
  }

  expire(sequence: number, timeoutMs: number): void {
    const waiting = this.#waiting.get(sequence)
    if (!waiting || this.#over) return
    this.#channel.send(encodeMessage({ type: 'expired', sequence, timeoutMs }))
    waiting.cancelVerdict = startDeadline(verdictTimeoutMs, () => {
      const operation = describeCollective(waiting.contribution)
      const message = `${operation} timed out on rank ${this.#rank} after ${timeoutMs} ms; rank 0 did not answer`
      const details = { operation, timeoutMs, missing: [0] }
      this.#failAll({ code: 'ERR_MOE_EP_TIMEOUT', message, origin: this.#rank, details })
    })
  }

  fail(report: FailureReport): void {
    if (this.#over) return
    this.#finish()
    tellFailure([this.#channel], report)
  }

  leave(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    if (!this.#over) this.#channel.send(encodeMessage({ type: 'goodbye' }))
    this.#finish()
    return this.#channel.end(timeoutMs, signal)
  }

  #finish(): void {
    this.#over = true
    for (const { cancelVerdict } of this.#waiting.values()) cancelVerdict()
    this.#waiting.clear()
  }

  #failAll(report: FailureReport): void {
    if (this.#over) return
    this.fail(report)
    this.#events?.failed(report)
  }

  #receive(message: Message): void {
    if (this.#over) return
    if (message.type === 'part') return this.#receivePart(message.sequence, message.rank, message.bytes)
    if (message.type === 'done') return this.#receiveDone(message.sequence)
    if (message.type === 'fail') return this.#hearFailure(message.report)
    if (message.type === 'goodbye') return this.#hubLeaves()
    this.#failAll(protocolReport(0, `rank 0 sent '${message.type}' out of turn`))
  }

  #hearFailure(report: FailureReport): void {
    this.#finish()
    void this.#channel.end(farewellTimeoutMs)
    this.#events?.failed(report)
  }

  #receivePart(sequence: number, rank: number, bytes: Uint8Array): void {
    const waiting = this.#waiting.get(sequence)
    const wanted = waiting?.contribution.kind === 'allGather' && rank < this.#worldSize && !waiting.parts[rank]
    if (!waiting || !wanted)
      return this.#failAll(protocolReport(0, `rank 0 sent a part of collective #${sequence} twice or unasked`))
    waiting.parts[rank] = bytes
    waiting.numParts++
  }

  #receiveDone(sequence: number): void {
    const waiting = this.#waiting.get(sequence)
    const complete = waiting?.contribution.kind === 'barrier' || waiting?.numParts === this.#worldSize
    if (!waiting || !complete)
      return this.#failAll(protocolReport(0, `rank 0 ended collective #${sequence} early or twice`))
    waiting.cancelVerdict()
    this.#waiting.delete(sequence)
    this.#events?.done(sequence, waiting.parts)
  }

  #hubLeaves(): void {
    this.#hubLeft = true
    const [first] = this.#waiting.values()
    if (first) this.#failAll(leftReport(describeCollective(first.contribution), 0))
  }
}
