import { type Server, createServer } from 'node:net'
import { MoeEpError } from '@moe-ep/core'
import type { ConnectSettings } from './connect-options.js'
import { onAbort, startDeadline } from './deadline.js'
import { type FailureReport, errorFromReport } from './failure-report.js'
import { FrameChannel } from './frame-channel.js'
import { acceptSpoke } from './handshake.js'
import { checkOrigin, tellFailure } from './hub-link.js'
import { farewellTimeoutMs, frameHeadroomBytes, handshakeTimeoutMs, maxUnauthenticatedConnections } from './limits.js'
import { leftReport, lostReport, protocolReport, timeoutReport } from './link.js'
import { type Message, type Placement, encodeMessage } from './messages.js'
import { resolveNodes } from './placement.js'

/** A complete world, seen from rank 0. */
export interface GatheredRanks {
  readonly nodeOfRank: readonly number[]
  readonly peers: ReadonlyMap<number, FrameChannel>
}

/**
 * Rank 0's rendezvous: listens until every other rank has joined. Connections that prove nothing are dropped and do
 * not matter.
 *
 * @throws ERR_MOE_EP_CONNECT when it cannot listen, ERR_MOE_EP_TIMEOUT naming the missing ranks,
 *   ERR_MOE_EP_PEER_LOST when a rank that had joined went away, ERR_MOE_EP_MISMATCH when ranks disagree about
 *   nodes, ERR_MOE_EP_ABORTED; all ranks that joined get the same
 */
export function gatherRanks(settings: ConnectSettings): Promise<GatheredRanks> {
  return new RankGathering(settings).run()
}

class RankGathering {
  readonly #settings: ConnectSettings
  readonly #server: Server
  readonly #unproved = new Set<FrameChannel>()
  readonly #members = new Map<number, FrameChannel>()
  readonly #placements = new Map<number, Placement>()
  readonly #cleanUps: (() => void)[] = []
  #numRefused = 0
  #over = false
  #resolve: (ranks: GatheredRanks) => void = () => {}
  #reject: (error: MoeEpError) => void = () => {}

  constructor(settings: ConnectSettings) {
    this.#settings = settings
    this.#placements.set(0, settings.placement)
    this.#server = createServer((socket) => {
      const channel = new FrameChannel(socket)
      if (this.#over) return channel.destroy()
      void this.#welcome(channel)
    })
  }

  run(): Promise<GatheredRanks> {
    const { host, port, timeoutMs, signal } = this.#settings
    return new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
      this.#server.on('error', (error) => {
        // A connection that could not be accepted (no file descriptor left, say) may be dialled again.
        if (this.#server.listening) return
        const message = `rank 0: cannot listen at ${host}, port ${port}: ${error.message}`
        this.#stop(new MoeEpError('ERR_MOE_EP_CONNECT', message, { cause: error }))
      })
      this.#cleanUps.push(startDeadline(timeoutMs, () => this.#expire(0, timeoutMs)))
      this.#cleanUps.push(onAbort(signal, (reason) => this.#abort(reason)))
      if (!this.#over) this.#server.listen({ host, port, backlog: 4096 })
    })
  }

  async #welcome(channel: FrameChannel): Promise<void> {
    this.#unproved.add(channel)
    if (this.#unproved.size > maxUnauthenticatedConnections) {
      const [oldest] = this.#unproved
      oldest?.destroy()
      this.#unproved.delete(oldest as FrameChannel)
    }
    // One deadline for the whole handshake: a byte now and then does not extend it.
    const cancelDeadline = startDeadline(handshakeTimeoutMs, () => channel.destroy())
    const { secret, worldSize, maxFrameBytes } = this.#settings
    const handshake = { secret, worldSize, frameBytes: maxFrameBytes + frameHeadroomBytes }
    try {
      if (await acceptSpoke(channel, handshake, (rank) => this.#claim(rank, channel))) return
      this.#numRefused++
      void channel.end(farewellTimeoutMs)
    } catch {
      this.#numRefused++
      channel.destroy()
    } finally {
      cancelDeadline()
      this.#unproved.delete(channel)
    }
  }

  #claim(rank: number, channel: FrameChannel): boolean {
    if (this.#over || rank === 0 || this.#members.has(rank)) return false
    this.#members.set(rank, channel)
    this.#unproved.delete(channel)
    // The handshake still has its answer to send; what the rank says next belongs to the gathering.
    queueMicrotask(() => {
      if (this.#over) return
      channel.handle({
        message: (message) => this.#receive(rank, message),
        ended: (cause) => this.#fail(lostReport(rank, cause)),
      })
    })
    return true
  }

  #receive(rank: number, message: Message): void {
    if (message.type === 'expired') return this.#expire(rank, message.timeoutMs)
    if (message.type === 'fail') return this.#fail(checkOrigin(message.report, rank, this.#settings.worldSize))
    if (message.type === 'goodbye') return this.#fail(leftReport('connect', rank))
    if (message.type !== 'join' || this.#placements.has(rank)) {
      return this.#fail(protocolReport(rank, `rank ${rank} sent '${message.type}' out of turn`))
    }
    this.#placements.set(rank, message.placement)
    if (this.#placements.size === this.#settings.worldSize) this.#complete()
  }

  #complete(): void {
    const { worldSize, host } = this.#settings
    const placements = Array.from({ length: worldSize }, (_, rank) => this.#placements.get(rank) as Placement)
    let nodeOfRank: number[]
    try {
      nodeOfRank = resolveNodes(placements, host)
    } catch (error) {
      const { code, message, details } = MoeEpError.from(error)
      return this.#fail({ code, message, origin: 0, details })
    }
    this.#stop()
    const welcome = encodeMessage({ type: 'welcome', nodeOfRank })
    for (const channel of this.#members.values()) {
      channel.handle(undefined)
      channel.send(welcome)
    }
    this.#resolve({ nodeOfRank, peers: this.#members })
  }

  #expire(rank: number, timeoutMs: number): void {
    const { worldSize, host, port } = this.#settings
    const missing = Array.from({ length: worldSize }, (_, r) => r).filter((r) => !this.#placements.has(r))
    const report = timeoutReport({ operation: `connect at ${host}, port ${port}`, rank, timeoutMs, missing })
    const refused = this.#numRefused > 0 ? ` (${this.#numRefused} connections were refused)` : ''
    this.#fail({ ...report, message: report.message + refused })
  }

  #abort(reason: unknown): void {
    const report: FailureReport = {
      code: 'ERR_MOE_EP_ABORTED',
      message: 'connect was aborted on rank 0',
      origin: 0,
      details: {},
    }
    this.#fail(report, reason)
  }

  #fail(report: FailureReport, cause?: unknown): void {
    if (this.#over) return
    const error = errorFromReport(report, 0)
    if (cause !== undefined) error.cause = cause
    this.#stop(error)
    tellFailure([...this.#members.values()], report)
  }

  #stop(error?: MoeEpError): void {
    if (this.#over) return
    this.#over = true
    for (const cleanUp of this.#cleanUps) cleanUp()
    if (this.#server.listening) this.#server.close()
    for (const channel of this.#unproved) channel.destroy()
    this.#unproved.clear()
    if (error) this.#reject(error)
  }
}
