import { describe, expect, it } from 'vitest'
import { type ProcessGroup, connect } from '../../src/rendezvous/index.js'
import { closeWorld, codesOf, failureOf, freePort, openWorld, rankOptions } from './world.js'

/** Bytes that say who sent them: rank r sends r + 3 * step bytes. */
function payload(rank: number, step = 0): Uint8Array {
  return new Uint8Array(rank + 3 * step).fill(rank + 16 * step)
}

async function withWorld(worldSize: number, use: (groups: ProcessGroup[]) => Promise<void>): Promise<void> {
  const groups = await openWorld(worldSize)
  try {
    await use(groups)
  } finally {
    await closeWorld(groups)
  }
}

describe.each([1, 2, 3, 5, 8])('a world of %i', (worldSize) => {
  it('gathers bytes of different lengths on every rank, and has barriers', async () => {
    await withWorld(worldSize, async (groups) => {
      const results = await Promise.all(groups.map((group) => group.allGather(payload(group.rank))))
      const expected = groups.map((_, rank) => payload(rank))
      for (const result of results) expect(result).toEqual(expected)
      await Promise.all(groups.map((group) => group.barrier()))
      expect(groups.map((group) => group.failure)).toEqual(groups.map(() => undefined))
    })
  })

  it('keeps overlapping calls apart, in whatever order ranks come to them', async () => {
    await withWorld(worldSize, async (groups) => {
      const calls = groups.map(async (group) => {
        if (group.rank % 2 === 1) await new Promise((resolve) => setTimeout(resolve, 20))
        const first = group.allGather(payload(group.rank, 1), { label: 'first' })
        const between = group.barrier()
        const second = group.allGather(payload(group.rank, 2), { label: 'second' })
        return { second: await second, first: await first, between: await between }
      })
      for (const { first, second } of await Promise.all(calls)) {
        expect(first).toEqual(groups.map((_, rank) => payload(rank, 1)))
        expect(second).toEqual(groups.map((_, rank) => payload(rank, 2)))
      }
    })
  })
})

describe('allGather', () => {
  it('carries 1 MiB from every rank', async () => {
    await withWorld(3, async (groups) => {
      const bytes = groups.map((_, rank) => new Uint8Array(2 ** 20).map((_, i) => (i * 31 + rank * 7) & 255))
      const results = await Promise.all(groups.map((group) => group.allGather(bytes[group.rank] as Uint8Array)))
      for (const result of results) {
        result.forEach((part, rank) => expect(Buffer.compare(part, bytes[rank] as Uint8Array)).toBe(0))
      }
    })
  })

  it('takes the bytes at the call and gives fresh arrays', async () => {
    await withWorld(2, async (groups) => {
      const bytes = groups.map((_, rank) => Uint8Array.of(rank, rank, rank, rank))
      const calls = groups.map((group) => group.allGather(bytes[group.rank] as Uint8Array))
      for (const part of bytes) part.fill(255)
      for (const result of await Promise.all(calls)) {
        expect(result).toEqual([Uint8Array.of(0, 0, 0, 0), Uint8Array.of(1, 1, 1, 1)])
        for (const part of result) expect([part.byteOffset, part.buffer.byteLength]).toEqual([0, 4])
      }
    })
  })

  it('refuses what is not bytes, too many of them, and bad options, and harms nothing', async () => {
    const groups = await openWorld(2, { maxFrameBytes: 2048 })
    const [first] = groups as [ProcessGroup, ProcessGroup]
    const refused = await Promise.all([
      failureOf(first.allGather('text' as unknown as Uint8Array)),
      failureOf(first.allGather(new Uint8Array(2049))),
      failureOf(first.barrier({ timeoutMs: 0 })),
      failureOf(first.barrier({ label: 'x'.repeat(201) })),
      failureOf(first.close({ timeoutMs: -1 })),
    ])
    expect(codesOf(refused)).toEqual(refused.map(() => 'ERR_MOE_EP_ARGUMENT'))
    const results = await Promise.all(groups.map((group) => group.allGather(new Uint8Array(2048))))
    expect(results.flat().map((part) => part.length)).toEqual([2048, 2048, 2048, 2048])
    await closeWorld(groups)
  })
})

describe('connect', () => {
  it('opens no socket for a world of one', async () => {
    const group = await connect({ environment: {} })
    expect(process.getActiveResourcesInfo().filter((name) => name.startsWith('TCP'))).toEqual([])
    expect(group).toMatchObject({ rank: 0, worldSize: 1, timeoutMs: 30_000 })
    expect(await group.allGather(Uint8Array.of(1))).toEqual([Uint8Array.of(1)])
    await group.close()
  })

  it('tells every rank the same nodes', async () => {
    const groups = await openWorld(7, { nodes: 2 })
    for (const { rank, topology } of groups) {
      expect(topology).toMatchObject({ rank, nodes: 2, node: rank < 4 ? 0 : 1, rankInNode: rank < 4 ? rank : rank - 4 })
    }
    await closeWorld(groups)
  })

  it.each(['::1', '[::1]', 'localhost'])('works at %s', async (host) => {
    const port = await freePort('::1')
    const groups = await Promise.all([0, 1].map((rank) => connect(rankOptions(rank, 2, port, { host }))))
    await Promise.all(groups.map((group) => group.barrier()))
    expect(groups.map((group) => group.topology.nodes)).toEqual([1, 1])
    await closeWorld(groups)
  })

  it('waits for a rank 0 that comes late, and can be repeated at the same port', async () => {
    const port = await freePort()
    for (const lateMs of [150, 0]) {
      const early = connect(rankOptions(1, 2, port))
      await new Promise((resolve) => setTimeout(resolve, lateMs))
      const groups = await Promise.all([connect(rankOptions(0, 2, port)), early])
      await Promise.all(groups.map((group) => group.barrier()))
      expect(groups.map((group) => group.rank)).toEqual([0, 1])
      await closeWorld(groups)
    }
  })

  it('brings up two worlds at once in one process', async () => {
    const worlds = await Promise.all([openWorld(3), openWorld(2)])
    await Promise.all(worlds.flat().map((group) => group.barrier()))
    expect(worlds.flat().map((group) => group.worldSize)).toEqual([3, 3, 3, 2, 2])
    await Promise.all(worlds.map(closeWorld))
  })
})
