import { expect, test } from 'vitest'
import { endsOf } from '../../transport/test/symmetric/launch.js'
import { starterOf } from '../../transport/test/symmetric/started-ranks.js'

const start = starterOf(new URL('fixtures/rank.mjs', import.meta.url))

test.each([
  ['before a dispatch', 'pauseBeforeDispatch', 'low-latency dispatch, slot 0: no messages from rank 2'],
  ['between dispatch and combine', 'pauseBeforeCombine', 'low-latency combine, slot 0: no rows from rank 2'],
])('a rank that stops %s is named at the deadline, and the others go on without it', async (_, scenario, what) => {
  const ranks = await start({ scenario, numRanks: 4 })
  const others = ranks.filter((_, rank) => rank !== 2)
  // It says nothing of its own, and its sockets stay open: the deadline is all that the others have.
  expect(await endsOf(others)).toEqual([0, 0, 0])
  for (const { events } of others) {
    expect(events).toEqual([
      { event: 'failed', code: 'ERR_MOE_EP_TIMEOUT', message: expect.stringContaining(what) },
      { event: 'rebuilt', worldSize: 3, wrong: 0 },
    ])
  }
  expect(ranks[2]!.events).toEqual([])
  // When it goes on, it finds that the others have given it up, and ends.
  process.kill(ranks[2]!.pid!, 'SIGCONT')
  expect(await ranks[2]!.ended).toBe(0)
  expect(ranks[2]!.events).toEqual([
    { event: 'failed', code: expect.stringMatching(/^ERR_MOE_EP_(TIMEOUT|PEER_LOST)$/), message: expect.any(String) },
  ])
})

test.each([
  ['worker threads of one process', true],
  ['processes', false],
])('a rank that is late by 50 ms everywhere is waited for, as %s', async (_, threads) => {
  const ranks = await start({ scenario: 'slow', numRanks: 4, threads })
  expect(await endsOf(ranks)).toEqual([0, 0, 0, 0])
  expect(ranks.map(({ events }) => events)).toEqual(ranks.map(() => [{ event: 'done', wrong: 0 }]))
})
