import { isIP } from 'node:net'
import { MoeEpError } from '@moe-ep/core'
import type { Placement } from './messages.js'
import { splitEvenly } from './topology.js'

/**
 * Gives the node of every rank from what the ranks said about themselves; nodes are numbered by their lowest rank.
 *
 * @throws ERR_MOE_EP_MISMATCH when the ranks were set up in different ways
 */
export function resolveNodes(placements: readonly Placement[], host: string): number[] {
  const first = placements[0] as Placement
  placements.forEach((placement, rank) => {
    if (placement.mode !== first.mode || (first.mode === 'split' && placement.key !== first.key)) {
      const message = `ranks disagree about the nodes: rank 0 has ${say(first)}, rank ${rank} has ${say(placement)}`
      throw new MoeEpError('ERR_MOE_EP_MISMATCH', message, { details: { mismatched: rank } })
    }
  })
  if (first.mode === 'split') return splitEvenly(placements.length, splitCount(first, placements.length))
  // Who meets on the loopback address is on one machine, whatever host names containers gave themselves.
  if (first.mode === 'host' && isLoopback(host)) return placements.map(() => 0)
  const numbers = new Map<string, number>()
  return placements.map(({ key }) => {
    const node = numbers.get(key) ?? numbers.size
    numbers.set(key, node)
    return node
  })
}

function splitCount({ key }: Placement, worldSize: number): number {
  const nodes = Number(key)
  if (Number.isInteger(nodes) && nodes >= 1 && nodes <= worldSize) return nodes
  throw new MoeEpError('ERR_MOE_EP_PROTOCOL', 'a rank asked for an impossible number of nodes')
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function say({ mode, key }: Placement): string {
  if (mode === 'split') return `${key} nodes (MOE_EP_NODES)`
  return mode === 'local' ? 'local ranks (LOCAL_RANK, LOCAL_WORLD_SIZE)' : 'no setting'
}
