import { type ConnectOptions, type ConnectSettings, resolveConnectOptions } from './connect-options.js'
import { abortedError } from './dial-hub.js'
import { gatherRanks } from './gather-ranks.js'
import { HubLink } from './hub-link.js'
import { joinHub } from './join-hub.js'
import type { Link } from './link.js'
import { ProcessGroup, handled } from './process-group.js'
import { SoloLink } from './solo-link.js'
import { SpokeLink } from './spoke-link.js'
import { type Topology, createTopology } from './topology.js'

/**
 * Gives the group of all ranks of this run. Rank 0 listens and the others dial; both sides of a connection prove by
 * HMAC-SHA256 that they know the shared secret. What follows on the connection is not encrypted: use a network that
 * you trust. Without options and without a launcher's environment it is a world of one rank, with no socket at all.
 *
 * An open group keeps the process alive: `close()` it, or hold it with `await using`.
 *
 * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_CONFIG for bad options or variables; ERR_MOE_EP_CONNECT when rank 0
 *   cannot listen or was not reached in time; ERR_MOE_EP_TIMEOUT naming the ranks that did not join;
 *   ERR_MOE_EP_AUTH when secrets differ; ERR_MOE_EP_PROTOCOL when the rank is taken or the world size or version
 *   differs; ERR_MOE_EP_MISMATCH when ranks disagree about nodes; ERR_MOE_EP_PEER_LOST; ERR_MOE_EP_ABORTED
 */
export function connect(options: ConnectOptions = {}): Promise<ProcessGroup> {
  return handled(open(options))
}

async function open(options: ConnectOptions): Promise<ProcessGroup> {
  const settings = resolveConnectOptions(options)
  const { rank, timeoutMs, maxFrameBytes, signal } = settings
  if (signal?.aborted) throw abortedError(rank, signal)
  const { topology, link } = await reachOthers(settings)
  return new ProcessGroup({ topology, timeoutMs, maxFrameBytes, link })
}

async function reachOthers(settings: ConnectSettings): Promise<{ topology: Topology; link: Link }> {
  const { rank, worldSize } = settings
  if (worldSize === 1) return { topology: createTopology({ rank, worldSize }), link: new SoloLink() }
  if (rank === 0) {
    const { nodeOfRank, peers } = await gatherRanks(settings)
    return { topology: createTopology({ rank, worldSize, nodeOfRank }), link: new HubLink(peers) }
  }
  const { topology, channel } = await joinHub(settings)
  return { topology, link: new SpokeLink(channel, rank, worldSize) }
}
