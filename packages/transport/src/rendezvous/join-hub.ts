import { MoeEpError } from '@moe-ep/core'
import type { ConnectSettings } from './connect-options.js'
import { abortedError, dialHub } from './dial-hub.js'
import { type FailureReport, errorFromReport } from './failure-report.js'
import type { FrameChannel } from './frame-channel.js'
import { tellFailure } from './hub-link.js'
import { farewellTimeoutMs, verdictTimeoutMs } from './limits.js'
import { lostReport, protocolReport } from './link.js'
import { type Message, encodeMessage } from './messages.js'
import { type Topology, createTopology } from './topology.js'

/** A complete world, seen from a rank other than 0. */
export interface JoinedHub {
  readonly topology: Topology
  readonly channel: FrameChannel
}

/**
 * The rendezvous of a rank other than 0: dials rank 0, joins, and waits until all ranks have.
 *
 * @throws ERR_MOE_EP_CONNECT when rank 0 was not reached, ERR_MOE_EP_TIMEOUT naming the ranks that never joined,
 *   ERR_MOE_EP_PEER_LOST, ERR_MOE_EP_AUTH, ERR_MOE_EP_PROTOCOL, ERR_MOE_EP_MISMATCH, ERR_MOE_EP_ABORTED
 */
export async function joinHub(settings: ConnectSettings): Promise<JoinedHub> {
  const deadline = performance.now() + settings.timeoutMs
  const channel = await dialHub(settings, deadline)
  channel.send(encodeMessage({ type: 'join', placement: settings.placement }))
  const message = await waitForWorld(channel, settings, deadline)
  try {
    if (message.type === 'welcome') return { topology: readTopology(message.nodeOfRank, settings), channel }
    throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `'${message.type}' arrived in place of a welcome`)
  } catch (error) {
    throw giveUp(channel, settings.rank, protocolReport(0, `rank 0: ${(error as Error).message}`))
  }
}

async function waitForWorld(channel: FrameChannel, settings: ConnectSettings, deadline: number): Promise<Message> {
  const { rank, signal } = settings
  let message: Message
  try {
    message = await channel.next({ timeoutMs: Math.max(1, deadline - performance.now()), signal })
  } catch (error) {
    if (signal?.aborted) {
      const text = `connect was aborted on rank ${rank}`
      tellFailure([channel], { code: 'ERR_MOE_EP_ABORTED', message: text, origin: rank, details: {} })
      throw abortedError(rank, signal)
    }
    if (MoeEpError.isInstance(error, 'ERR_MOE_EP_TIMEOUT')) return askWhoIsMissing(channel, settings)
    throw giveUp(channel, rank, lostReport(0, MoeEpError.isInstance(error, 'ERR_MOE_EP_PROTOCOL') ? error : undefined))
  }
  return hearFailure(channel, rank, message)
}

/**
 * This rank's deadline has passed. Only rank 0 knows who has not joined: it is asked, and fails everybody with the
 * answer.
 */
async function askWhoIsMissing(channel: FrameChannel, { rank, timeoutMs }: ConnectSettings): Promise<Message> {
  channel.send(encodeMessage({ type: 'expired', sequence: 0, timeoutMs }))
  let answer: Message
  try {
    answer = await channel.next({ timeoutMs: verdictTimeoutMs })
  } catch {
    const message = `connect timed out on rank ${rank} after ${timeoutMs} ms; rank 0 did not answer`
    const details = { operation: 'connect', timeoutMs, missing: [0] }
    throw giveUp(channel, rank, { code: 'ERR_MOE_EP_TIMEOUT', message, origin: rank, details })
  }
  return hearFailure(channel, rank, answer)
}

function hearFailure(channel: FrameChannel, rank: number, message: Message): Message {
  if (message.type !== 'fail') return message
  void channel.end(farewellTimeoutMs)
  throw errorFromReport(message.report, rank)
}

function giveUp(channel: FrameChannel, rank: number, report: FailureReport): MoeEpError {
  tellFailure([channel], report)
  return errorFromReport(report, rank)
}

function readTopology(nodeOfRank: readonly number[], { rank, worldSize }: ConnectSettings): Topology {
  return createTopology({ rank, worldSize, nodeOfRank })
}
