import { spawnSync } from 'node:child_process'
import { afterEach, describe, expect, test } from 'vitest'
import { requires } from '../../../../tooling/vitest/requirements.js'
import { endsOf, type Launch, launch, type RunningRank } from './launch.js'
import { countMappings, eventually, noSocketStays, onCpu } from './world.js'

const script = new URL('fixtures/rank.mjs', import.meta.url)
let ranks: RunningRank[] = []

async function start(options: Omit<Launch, 'script'>): Promise<RunningRank[]> {
  return (ranks = await launch({ script, ...options }))
}

afterEach(async () => {
  for (const rank of ranks) rank.kill()
  await endsOf(ranks)
  await noSocketStays()
})

describe.each([
  ['processes', false],
  ['worker threads', true],
])('ranks as %s', (_, threads) => {
  test.each([1, 2, 3, 8])('map one another: %i', async (numRanks) => {
    await start({ numRanks, threads, scenario: 'exchange' })
    expect(await endsOf(ranks)).toEqual(ranks.map(() => 0))
    expect(ranks.map(({ events }) => events)).toEqual(
      ranks.map(() => [{ event: 'done', wrong: 0, worldSize: numRanks }]),
    )
    await eventually(() => countMappings() === 0, 'all is unmapped')
  })

  test('end by themselves, and leave nothing mapped, when memories and streams were not closed', async () => {
    await start({ numRanks: 2, threads, scenario: 'leaveOpen' })
    expect(await endsOf(ranks)).toEqual([0, 0])
    await eventually(() => countMappings() === 0, 'all is unmapped')
  })
})

test('processes close one after the other, while those that are left use what was closed', async () => {
  await start({ numRanks: 3, scenario: 'closeInTurn' })
  expect(await endsOf(ranks)).toEqual([0, 0, 0])
  for (const { events } of ranks) {
    expect(events).toEqual([{ event: 'done', wrong: 0, sharing: onCpu ? 'memfd' : 'vmm', mappings: 0 }])
  }
})

describe('a rank that goes in the middle of a wait', () => {
  test('is named to the others long before their deadline when it was killed', async () => {
    await start({ numRanks: 3, scenario: 'waitForRankOne' })
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[1]!.kill()
    expect(await endsOf(ranks)).toEqual([0, 'SIGKILL', 0])
    for (const rank of [0, 2]) {
      expect(ranks[rank]!.events.slice(1)).toEqual([
        { event: 'failed', code: 'ERR_MOE_EP_PEER_LOST', message: expect.stringContaining('rank 1 was lost') },
        { event: 'closed', mappings: 0 },
      ])
    }
  })

  test('ends the others with a named error when it was a thread that was terminated', async () => {
    await start({ numRanks: 3, threads: true, scenario: 'waitForRankOne' })
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[1]!.kill()
    expect(await endsOf(ranks)).toEqual([0, 1, 0])
    for (const rank of [0, 2]) {
      // Which word is first: that of its stream, which was ended in its wait, or that of its connection.
      expect(ranks[rank]!.events[1]).toMatchObject({
        event: 'failed',
        code: expect.stringMatching(/^ERR_MOE_EP_(ABORTED|PEER_LOST)$/),
        message: expect.stringContaining('rank 1'),
      })
      expect(ranks[rank]!.events[2]).toMatchObject({ event: 'closed' })
    }
    await eventually(() => countMappings() === 0, 'all is unmapped')
  })
})

const smallShm = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', 'sh']

const hasSmallShm = requires('shm64', () => {
  const { status, error, stderr } = spawnSync(smallShm[0]!, [...smallShm.slice(1), 'true'], { encoding: 'utf8' })
  if (status === 0) return true
  return `cannot mount a 64 MB /dev/shm in a namespace of its own: ${(error?.message ?? stderr.trim().split('\n')[0]) || 'failed'}`
})

describe.skipIf(!hasSmallShm)('with a /dev/shm of 64 MB', () => {
  test('two ranks share 256 MB each', { timeout: 240_000 }, async () => {
    await start({ numRanks: 2, scenario: 'big', under: smallShm, timeoutMs: 120_000 })
    expect(await endsOf(ranks)).toEqual([0, 0])
    for (const { events } of ranks) {
      expect(events).toEqual([{ event: 'done', wrong: 0, worldSize: 2, shm: 64 * 2 ** 20, mappings: 0 }])
    }
  })
})
