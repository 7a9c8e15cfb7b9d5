import type { FailureReport } from './failure-report.js'
import { farewellTimeoutMs } from './limits.js'
import {
  type Contribution,
  type Link,
  type LinkEvents,
  describeCollective,
  leftReport,
  lostReport,
  protocolReport,
  timeoutReport,
} from './link.js'
import type { FrameChannel } from './frame-channel.js'
import { type CollectiveKind, type Message, encodeMessage } from './messages.js'

/** A collective that some ranks have called and others have not. */
interface Step {
  readonly kind: CollectiveKind
  readonly label: string
  readonly firstRank: number
  readonly parts: (Uint8Array | undefined)[]
  numContributed: number
}

/** The link of rank 0: collects what the ranks contribute, compares it, and sends everything to everyone. */
export class HubLink implements Link {
  readonly #worldSize: number
  readonly #peers: ReadonlyMap<number, FrameChannel>
  readonly #steps = new Map<number, Step>()
  readonly #nextSequence: number[]
  readonly #left = new Set<number>()
  #events: LinkEvents | undefined
  #over = false

  constructor(peers: ReadonlyMap<number, FrameChannel>) {
    this.#peers = peers
    this.#worldSize = peers.size + 1
    this.#nextSequence = Array.from({ length: this.#worldSize }, () => 1)
  }

  start(events: LinkEvents): void {
    this.#events = events
    for (const [rank, channel] of this.#peers) {
      channel.handle({
        message: (message) => this.#receive(rank, message),
        ended: (cause) => {
          if (!this.#left.has(rank)) this.#failAll(lostReport(rank, cause))
        },
      })
    }
  }

  contribute(contribution: Contribution): void {
    this.#contribute(0, contribution)
  }

  expire(sequence: number, timeoutMs: number): void {
    this.#expire(0, sequence, timeoutMs)
  }

  fail(report: FailureReport): void {
    if (this.#over) return
    this.#over = true
    this.#steps.clear()
    tellFailure([...this.#peers.values()], report)
  }

  async leave(timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const goodbye = this.#over ? [] : [encodeMessage({ type: 'goodbye' })]
    this.#over = true
    this.#steps.clear()
    await Promise.all(
      [...this.#peers.values()].map((channel) => {
        channel.send(...goodbye)
        return channel.end(timeoutMs, signal)
      }),
    )
  }

  #failAll(report: FailureReport): void {
    if (this.#over) return
    this.fail(report)
    this.#events?.failed(report)
  }

  #receive(rank: number, message: Message): void {
    if (this.#over) return
    if (this.#left.has(rank)) return this.#failAll(protocolReport(rank, `rank ${rank} spoke after its goodbye`))
    if (message.type === 'contribute') return this.#contribute(rank, message)
    if (message.type === 'expired') return this.#expire(rank, message.sequence, message.timeoutMs)
    if (message.type === 'fail') return this.#failAll(checkOrigin(message.report, rank, this.#worldSize))
    if (message.type === 'goodbye') return this.#leave(rank)
    this.#failAll(protocolReport(rank, `rank ${rank} sent '${message.type}' out of turn`))
  }

  #contribute(rank: number, contribution: Contribution): void {
    const { sequence, kind, label, bytes } = contribution
    if (this.#over) return
    if (sequence !== this.#nextSequence[rank]) {
      const message = `rank ${rank} called collective #${sequence} where #${this.#nextSequence[rank]} was due`
      return this.#failAll(protocolReport(rank, message))
    }
    this.#nextSequence[rank] = sequence + 1
    let step = this.#steps.get(sequence)
    if (!step) {
      step = { kind, label, firstRank: rank, parts: new Array(this.#worldSize).fill(undefined), numContributed: 0 }
      this.#steps.set(sequence, step)
    }
    if (step.kind !== kind || step.label !== label) {
      const first = `rank ${step.firstRank} called ${describeCollective({ ...step, sequence })}`
      const second = `rank ${rank} called ${describeCollective(contribution)}`
      const message = `ranks called different collectives: ${first}, ${second}`
      return this.#failAll(protocolReport(rank, message))
    }
    step.parts[rank] = bytes
    step.numContributed++
    if (step.numContributed === this.#worldSize) return this.#complete(sequence, step)
    this.#checkLeft(sequence, step)
  }

  #complete(sequence: number, step: Step): void {
    this.#steps.delete(sequence)
    const parts = step.parts as Uint8Array[]
    const done = encodeMessage({ type: 'done', sequence })
    const frames =
      step.kind === 'barrier' ? [] : parts.map((bytes, rank) => encodeMessage({ type: 'part', sequence, rank, bytes }))
    for (const [rank, channel] of this.#peers) channel.send(...frames.filter((_, source) => source !== rank), done)
    this.#events?.done(sequence, parts)
  }

  #expire(rank: number, sequence: number, timeoutMs: number): void {
    const step = this.#steps.get(sequence)
    // A collective that is no longer here is complete: its result is on the way to the rank that asked.
    if (!step || this.#over) return
    const missing = step.parts.flatMap((part, source) => (part ? [] : [source]))
    const operation = describeCollective({ ...step, sequence })
    this.#failAll(timeoutReport({ operation, rank, timeoutMs, missing }))
  }

  #leave(rank: number): void {
    this.#left.add(rank)
    for (const [sequence, step] of this.#steps) this.#checkLeft(sequence, step)
  }

  #checkLeft(sequence: number, step: Step): void {
    for (const rank of this.#left) {
      if (!step.parts[rank]) return this.#failAll(leftReport(describeCollective({ ...step, sequence }), rank))
    }
  }
}

/**
 * A report names the rank at fault, which need not be the one that noticed; a nonsensical one is laid to the
 * sender.
 */
export function checkOrigin(report: FailureReport, sender: number, worldSize: number): FailureReport {
  const known = report.origin >= 0 && report.origin < worldSize
  return known ? report : { ...report, origin: sender }
}

/** Sends a report to many ranks and ends their connections; gives up on those that do not take it soon. */
export function tellFailure(channels: readonly FrameChannel[], report: FailureReport): void {
  const frame = encodeMessage({ type: 'fail', report })
  for (const channel of channels) {
    channel.send(frame)
    void channel.end(farewellTimeoutMs)
  }
}
