import { randomBytes, timingSafeEqual } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { MoeEpError } from '@moe-ep/core'
import { native } from '../native.js'
import type { ProcessGroup } from '../rendezvous/index.js'

/** What a rank tells the others, through the authenticated rendezvous, about the socket that takes descriptors. */
interface Invitation {
  readonly name: string
  /** Whoever sends this proves that it belongs to the group: the socket itself is open to all processes of the machine. */
  readonly token: string
}

export interface DescriptorExchange {
  readonly group: ProcessGroup
  /** This rank's own descriptor. */
  readonly descriptor: number
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
}

const pollMs = 1

/**
 * Gives every rank of this node a copy of this rank's descriptor, and returns theirs by rank (this rank's own place is empty).
 * The caller owns what is returned.
 * @throws ERR_MOE_EP_TIMEOUT naming the ranks whose descriptor did not come; ERR_MOE_EP_ABORTED; ERR_MOE_EP_PROTOCOL;
 *   ERR_MOE_EP_CONNECT when a rank does not listen; what the group fails with.
 */
export async function exchangeDescriptors(exchange: DescriptorExchange): Promise<Map<number, number>> {
  const { group } = exchange
  const peers = group.topology.ranksOfNode(group.topology.node).filter((rank) => rank !== group.rank)
  const own: Invitation = { name: `moe-ep-${randomBytes(16).toString('hex')}`, token: randomBytes(32).toString('hex') }
  const socket = native().openDescriptorSocket(own.name)
  try {
    const { timeoutMs, signal } = exchange
    const encoded = await group.allGather(Buffer.from(`${own.name} ${own.token}`), {
      timeoutMs,
      signal,
      label: 'symmetric memory',
    })
    const invitations = encoded.map(invitationOf)
    return await transfer(socket, own.token, peers, invitations, exchange)
  } finally {
    native().closeDescriptor(socket)
  }
}

async function transfer(
  socket: number,
  token: string,
  peers: readonly number[],
  invitations: readonly Invitation[],
  { group, descriptor, timeoutMs, signal }: DescriptorExchange,
): Promise<Map<number, number>> {
  const deadline = performance.now() + timeoutMs
  const unsent = new Set(peers)
  const received = new Map<number, number>()
  try {
    while (unsent.size > 0 || received.size < peers.length) {
      for (const peer of unsent) {
        const { name, token: peerToken } = invitations[peer]!
        const payload = Buffer.from(`${peerToken}:${group.rank}`)
        if (native().sendDescriptor(socket, name, descriptor, payload)) unsent.delete(peer)
      }
      for (let arrival = native().receiveDescriptor(socket); arrival; arrival = native().receiveDescriptor(socket)) {
        const sender = senderOf(arrival.payload, token)
        if (sender !== undefined && peers.includes(sender) && !received.has(sender) && arrival.descriptor >= 0) {
          received.set(sender, arrival.descriptor)
        } else if (arrival.descriptor >= 0) {
          native().closeDescriptor(arrival.descriptor)
        }
      }
      if (unsent.size === 0 && received.size === peers.length) break
      if (group.failure !== undefined) throw group.failure
      if (signal?.aborted)
        throw new MoeEpError('ERR_MOE_EP_ABORTED', 'symmetric memory was aborted', { cause: signal.reason })
      if (performance.now() > deadline) {
        const missing = peers.filter((peer) => !received.has(peer))
        throw new MoeEpError(
          'ERR_MOE_EP_TIMEOUT',
          `rank ${group.rank}: no memory descriptor from rank ${missing.join(', ')} in ${timeoutMs} ms`,
        )
      }
      await sleep(pollMs)
    }
    return received
  } catch (error) {
    for (const other of received.values()) native().closeDescriptor(other)
    throw error
  }
}

/** @throws ERR_MOE_EP_PROTOCOL when a rank sent something else than an invitation. */
function invitationOf(bytes: Uint8Array, rank: number): Invitation {
  const [, name, token] = /^(moe-ep-[0-9a-f]{32}) ([0-9a-f]{64})$/.exec(Buffer.from(bytes).toString('latin1')) ?? []
  if (name !== undefined && token !== undefined) return { name, token }
  throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `rank ${rank} sent a malformed invitation for memory descriptors`)
}

/** The rank that a datagram comes from, or undefined when it does not carry our token. */
function senderOf(payload: Uint8Array, token: string): number | undefined {
  const [given = '', rank = ''] = Buffer.from(payload).toString('latin1').split(':')
  if (given.length !== token.length || !timingSafeEqual(Buffer.from(given), Buffer.from(token))) return undefined
  return /^\d{1,6}$/.test(rank) ? Number(rank) : undefined
}
