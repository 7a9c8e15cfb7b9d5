import { argumentError } from '@moe-ep/core'
import { maxWorldSize } from './limits.js'

/** Which rank runs on which node. Every rank of a group holds the same table. */
export interface Topology {
  /** Number of ranks. */
  readonly worldSize: number
  /** This rank, in [0, worldSize). */
  readonly rank: number
  /** Number of nodes. */
  readonly nodes: number
  /** The node of this rank, in [0, nodes). */
  readonly node: number
  /** Place of this rank among the ranks of its node, in rank order. */
  readonly rankInNode: number
  /** The ranks of one node, ascending. @throws ERR_MOE_EP_ARGUMENT when there is no such node */
  ranksOfNode(node: number): number[]
  /** The node of a rank. @throws ERR_MOE_EP_ARGUMENT when there is no such rank */
  nodeOf(rank: number): number
  /** Place of a rank among the ranks of its node. @throws ERR_MOE_EP_ARGUMENT when there is no such rank */
  rankInNodeOf(rank: number): number
  /** Whether a rank runs on this rank's node. @throws ERR_MOE_EP_ARGUMENT when there is no such rank */
  isSameNode(rank: number): boolean
}

/** What {@link createTopology} builds from: either a number of nodes or an explicit table. */
export interface TopologyOptions {
  readonly rank: number
  readonly worldSize: number
  /**
   * Split the ranks into this many contiguous blocks; the first `worldSize % nodes` blocks get one rank more.
   * @default 1
   */
  readonly nodes?: number | undefined
  /** The node of every rank, numbered without gaps from 0. Overrides the even split. */
  readonly nodeOfRank?: readonly number[] | undefined
}

/**
 * Gives the topology of a world: an even split into contiguous blocks, or exactly the table that is passed.
 *
 * @throws ERR_MOE_EP_ARGUMENT when a number is out of range, or the table has a gap, the wrong length or
 *   contradicts `nodes`
 */
export function createTopology(options: TopologyOptions): Topology {
  const { rank, worldSize } = options
  if (!isIntegerIn(worldSize, 1, maxWorldSize)) {
    throw argumentError('worldSize', `an integer from 1 to ${maxWorldSize}`, worldSize)
  }
  if (!isIntegerIn(rank, 0, worldSize - 1)) throw argumentError('rank', `an integer from 0 to ${worldSize - 1}`, rank)
  if (options.nodes !== undefined && !isIntegerIn(options.nodes, 1, worldSize)) {
    throw argumentError('nodes', `an integer from 1 to the world size ${worldSize}`, options.nodes)
  }
  const nodeOfRank = options.nodeOfRank ? [...options.nodeOfRank] : splitEvenly(worldSize, options.nodes ?? 1)
  const groups = groupByNode(nodeOfRank, worldSize)
  if (options.nodes !== undefined && groups.length !== options.nodes) {
    throw argumentError('nodeOfRank', `${options.nodes} different nodes`, groups.length)
  }
  return buildTopology(rank, nodeOfRank, groups)
}

/** The node of every rank when `worldSize` ranks are cut into `nodes` contiguous blocks. */
export function splitEvenly(worldSize: number, nodes: number): number[] {
  const base = Math.floor(worldSize / nodes)
  const larger = worldSize % nodes
  const border = larger * (base + 1)
  return Array.from({ length: worldSize }, (_, rank) =>
    rank < border ? Math.floor(rank / (base + 1)) : larger + Math.floor((rank - border) / base),
  )
}

function groupByNode(nodeOfRank: readonly number[], worldSize: number): number[][] {
  if (nodeOfRank.length !== worldSize) throw argumentError('nodeOfRank', `${worldSize} entries`, nodeOfRank.length)
  const groups: number[][] = []
  nodeOfRank.forEach((node, rank) => {
    if (!isIntegerIn(node, 0, worldSize - 1)) {
      throw argumentError(`nodeOfRank[${rank}]`, `an integer from 0 to ${worldSize - 1}`, node)
    }
    ;(groups[node] ??= []).push(rank)
  })
  for (let node = 0; node < groups.length; node++) {
    if (!groups[node])
      throw argumentError('nodeOfRank', `nodes numbered without gaps (node ${node} has no rank)`, nodeOfRank)
  }
  return groups
}

function buildTopology(rank: number, nodeOfRank: readonly number[], groups: readonly number[][]): Topology {
  const worldSize = nodeOfRank.length
  const checkRank = (value: number) => {
    if (!isIntegerIn(value, 0, worldSize - 1))
      throw argumentError('rank', `an integer from 0 to ${worldSize - 1}`, value)
  }
  const nodeOf = (value: number) => {
    checkRank(value)
    return nodeOfRank[value] as number
  }
  const ranksOfNode = (node: number) => {
    const ranks = isIntegerIn(node, 0, groups.length - 1) ? groups[node] : undefined
    if (!ranks) throw argumentError('node', `an integer from 0 to ${groups.length - 1}`, node)
    return [...ranks]
  }
  const rankInNodeOf = (value: number) => ranksOfNode(nodeOf(value)).indexOf(value)
  return Object.freeze({
    worldSize,
    rank,
    nodes: groups.length,
    node: nodeOf(rank),
    rankInNode: rankInNodeOf(rank),
    ranksOfNode,
    nodeOf,
    rankInNodeOf,
    isSameNode: (value: number) => nodeOf(value) === nodeOf(rank),
  })
}

function isIntegerIn(value: number, low: number, high: number): boolean {
  return Number.isInteger(value) && value >= low && value <= high
}
