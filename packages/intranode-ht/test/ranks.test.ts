import { describe, expect, test } from 'vitest'
import { endsOf } from '../../transport/test/symmetric/launch.js'
import { starterOf } from '../../transport/test/symmetric/started-ranks.js'

const start = starterOf(new URL('fixtures/rank.mjs', import.meta.url))

describe('8 ranks', () => {
  test.each([
    ['worker threads of one process', true],
    ['processes', false],
  ])('as %s', async (_, threads) => {
    const ranks = await start({ numRanks: 8, threads, scenario: 'trips' })
    expect(await endsOf(ranks)).toEqual(ranks.map(() => 0))
    expect(ranks.map(({ events }) => events)).toEqual(ranks.map(() => [{ event: 'done', wrong: 0 }]))
  })
})

test.each([
  ['worker threads of one process', true],
  ['processes', false],
])('wrong calls of one rank after another are refused on all, as %s', async (_, threads) => {
  const ranks = await start({ numRanks: 4, threads, scenario: 'refusals' })
  expect(await endsOf(ranks)).toEqual(ranks.map(() => 0))
  expect(ranks.map(({ events }) => events)).toEqual(
    ranks.map(() => [{ event: 'done', wrong: 0, codes: [16, 'ERR_MOE_EP_ARGUMENT'] }]),
  )
})

test('collections forced between all calls change nothing', async () => {
  const ranks = await start({ numRanks: 3, scenario: 'garbage', nodeOptions: ['--expose-gc'] })
  expect(await endsOf(ranks)).toEqual([0, 0, 0])
  expect(ranks.map(({ events }) => events)).toEqual(ranks.map(() => [{ event: 'done', wrong: 0 }]))
})

describe('a rank that is killed', () => {
  test.each([
    ['anywhere in a loop', 'loop:2'],
    ['while the others wait for it in dispatch', 'stopBeforeDispatch:2'],
    ['while the others wait for it in combine', 'stopBeforeCombine:2'],
  ])('%s: the others get a named error, leave nothing, and go on in a smaller world', async (_, scenario) => {
    const ranks = await start({ numRanks: 4, scenario })
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[2]!.kill()
    expect(await endsOf(ranks)).toEqual([0, 0, 'SIGKILL', 0])
    for (const rank of [0, 1, 3]) {
      expect(ranks[rank]!.events.slice(1)).toEqual([
        { event: 'failed', code: 'ERR_MOE_EP_PEER_LOST', message: expect.stringContaining('rank 2 was lost') },
        { event: 'later', code: 'ERR_MOE_EP_PEER_LOST' },
        { event: 'closed', mappings: 0 },
        { event: 'rebuilt', worldSize: 3, wrong: 0 },
      ])
    }
  })

  test('rank 0, which holds the group together, too', async () => {
    const ranks = await start({ numRanks: 3, scenario: 'loop' })
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[0]!.kill()
    expect(await endsOf(ranks)).toEqual(['SIGKILL', 0, 0])
    for (const { events } of ranks.slice(1)) {
      expect(events[1]).toMatchObject({
        event: 'failed',
        code: 'ERR_MOE_EP_PEER_LOST',
        message: expect.stringContaining('rank 0 was lost'),
      })
      expect(events[3]).toEqual({ event: 'closed', mappings: 0 })
    }
  })
})

test('threads that are terminated in the middle of their calls end the others with a named error, and the process lives', async () => {
  const ranks = await start({ numRanks: 4, threads: true, scenario: 'loop' })
  await Promise.all(ranks.map((rank) => rank.event('ready')))
  ranks[2]!.kill()
  expect(await endsOf(ranks)).toEqual([0, 0, 1, 0])
  for (const rank of [0, 1, 3]) {
    expect(ranks[rank]!.events[1]).toMatchObject({
      event: 'failed',
      code: expect.stringMatching(/^ERR_MOE_EP_(ABORTED|PEER_LOST)$/),
      message: expect.stringContaining('rank 2'),
    })
  }
})
