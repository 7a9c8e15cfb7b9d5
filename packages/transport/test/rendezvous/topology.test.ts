import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { createTopology } from '../../src/rendezvous/index.js'

describe('createTopology', () => {
  it('splits 7 ranks over 2 nodes as 4 and 3', () => {
    const topology = createTopology({ rank: 5, worldSize: 7, nodes: 2 })
    expect(topology.ranksOfNode(0)).toEqual([0, 1, 2, 3])
    expect(topology.ranksOfNode(1)).toEqual([4, 5, 6])
    expect(topology).toMatchObject({ worldSize: 7, rank: 5, nodes: 2, node: 1, rankInNode: 1 })
    expect(topology.isSameNode(4)).toBe(true)
    expect(topology.isSameNode(3)).toBe(false)
  })

  it('is one node by default', () => {
    expect(createTopology({ rank: 2, worldSize: 3 })).toMatchObject({ nodes: 1, node: 0, rankInNode: 2 })
  })

  it('takes any table of nodes', () => {
    const topology = createTopology({ rank: 3, worldSize: 4, nodeOfRank: [0, 1, 0, 1] })
    expect(topology).toMatchObject({ nodes: 2, node: 1, rankInNode: 1 })
    expect(topology.ranksOfNode(0)).toEqual([0, 2])
    expect(topology.rankInNodeOf(2)).toBe(1)
  })

  it('places every rank once, in blocks whose sizes differ by at most one', () => {
    const sizes = fc
      .integer({ min: 1, max: 200 })
      .chain((worldSize) =>
        fc.tuple(
          fc.constant(worldSize),
          fc.integer({ min: 1, max: worldSize }),
          fc.integer({ min: 0, max: worldSize - 1 }),
        ),
      )
    fc.assert(
      fc.property(sizes, ([worldSize, nodes, rank]) => {
        const topology = createTopology({ rank, worldSize, nodes })
        const blocks = Array.from({ length: nodes }, (_, node) => topology.ranksOfNode(node))
        expect(blocks.flat()).toEqual(Array.from({ length: worldSize }, (_, r) => r))
        const lengths = blocks.map((block) => block.length)
        expect(Math.max(...lengths) - Math.min(...lengths)).toBeLessThanOrEqual(1)
        expect(blocks[topology.nodeOf(rank)]?.[topology.rankInNodeOf(rank)]).toBe(rank)
      }),
    )
  })

  it.each([
    [{ rank: 0, worldSize: 0 }, 'worldSize'],
    [{ rank: 0, worldSize: 5000 }, 'worldSize'],
    [{ rank: 2, worldSize: 2 }, 'rank'],
    [{ rank: -1, worldSize: 2 }, 'rank'],
    [{ rank: 0, worldSize: 2, nodes: 3 }, 'nodes'],
    [{ rank: 0, worldSize: 2, nodes: 1.5 }, 'nodes'],
    [{ rank: 0, worldSize: 2, nodeOfRank: [0] }, 'nodeOfRank'],
    [{ rank: 0, worldSize: 3, nodeOfRank: [0, 2, 2] }, 'nodeOfRank'],
    [{ rank: 0, worldSize: 2, nodeOfRank: [0, -1] }, 'nodeOfRank[1]'],
    [{ rank: 0, worldSize: 2, nodes: 1, nodeOfRank: [0, 1] }, 'nodeOfRank'],
  ])('refuses %j and names %s', (options, argument) => {
    expect(() => createTopology(options)).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } }),
    )
  })

  it('refuses ranks and nodes that do not exist', () => {
    const topology = createTopology({ rank: 0, worldSize: 2 })
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
    expect(() => topology.nodeOf(2)).toThrow(refused)
    expect(() => topology.rankInNodeOf(-1)).toThrow(refused)
    expect(() => topology.isSameNode(0.5)).toThrow(refused)
    expect(() => topology.ranksOfNode(1)).toThrow(refused)
  })
})
