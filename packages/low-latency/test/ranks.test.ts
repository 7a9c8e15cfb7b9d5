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
  ['killed', 'SIGKILL', 'ERR_MOE_EP_PEER_LOST'],
  ['stopped', 'SIGSTOP', undefined],
] as const)('a rank that is %s is masked, and the others go on in the same world', async (_, signal, code) => {
  const ranks = await start({ numRanks: 4, scenario: 'mask' })
  await Promise.all(ranks.map((rank) => rank.event('ready')))
  process.kill(ranks[2]!.pid!, signal)
  const others = ranks.filter((_, rank) => rank !== 2)
  await Promise.all(others.map((rank) => rank.event('masked')))
  for (const { events } of others)
    expect(events.slice(1)).toEqual([{ event: 'masked', wrong: 0, agreed: [2], lost: code }])
  ranks[2]!.kill()
  expect(await endsOf(ranks)).toEqual([0, 0, 'SIGKILL', 0])
})

test.each([
  ['anywhere in a loop', 'loop'],
  ['between dispatch and combine', 'stopBeforeCombine'],
])('a rank that is killed %s: the others get a named error, and go on in a smaller world', async (_, scenario) => {
  const ranks = await start({ numRanks: 4, scenario })
  await Promise.all(ranks.map((rank) => rank.event('ready')))
  ranks[2]!.kill()
  expect(await endsOf(ranks)).toEqual([0, 0, 'SIGKILL', 0])
  for (const rank of [0, 1, 3]) {
    expect(ranks[rank]!.events.slice(1)).toEqual([
      { event: 'failed', code: 'ERR_MOE_EP_PEER_LOST', message: expect.stringContaining('rank 2 was lost') },
      { event: 'rebuilt', worldSize: 3, wrong: 0 },
    ])
  }
})
