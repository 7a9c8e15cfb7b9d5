import { type ChildProcess, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { afterEach, describe, expect, it } from 'vitest'
import { freePort, secret } from './world.js'

interface Event {
  readonly event: string
  readonly [key: string]: unknown
}

interface RankProcess {
  readonly child: ChildProcess
  readonly events: Event[]
  /** Resolves with the first event of this name, also when it came already. */
  event(name: string): Promise<Event>
  /** Resolves with the exit code or the signal once the process has ended. */
  readonly ended: Promise<number | NodeJS.Signals | null>
}

const children: ChildProcess[] = []

afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
})

function startRank(scenario: string, variables: Record<string, string>): RankProcess {
  const script = fileURLToPath(new URL('fixtures/rank.mjs', import.meta.url))
  const child = spawn(process.execPath, [script, scenario], {
    env: { PATH: process.env['PATH'], ...variables },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  children.push(child)
  const events: Event[] = []
  const waiting: (() => void)[] = []
  createInterface({ input: child.stdout as NodeJS.ReadableStream }).on('line', (line) => {
    events.push(JSON.parse(line) as Event)
    for (const look of [...waiting]) look()
  })
  const event = (name: string) =>
    new Promise<Event>((resolve, reject) => {
      const look = () => {
        const found = events.find((candidate) => candidate.event === name)
        if (found) resolve(found)
      }
      waiting.push(look)
      look()
      child.once('close', () => reject(new Error(`the rank ended without '${name}': ${JSON.stringify(events)}`)))
    })
  const ended = new Promise<number | NodeJS.Signals | null>((resolve) => {
    child.once('close', (code, signal) => resolve(signal ?? code))
  })
  return { child, events, event, ended }
}

async function startWorld(worldSize: number, scenario: string): Promise<RankProcess[]> {
  const port = await freePort()
  return Array.from({ length: worldSize }, (_, rank) =>
    startRank(scenario, {
      ...{ RANK: String(rank), WORLD_SIZE: String(worldSize), MASTER_ADDR: '127.0.0.1', MASTER_PORT: String(port) },
      ...{ MOE_EP_SECRET: secret, MOE_EP_TIMEOUT_MS: '20000' },
    }),
  )
}

describe('ranks in processes of their own', () => {
  it.each([1, 3, 8])('meet through the environment, and end by themselves after close: %i', async (worldSize) => {
    const ranks = await startWorld(worldSize, 'wellBehaved')
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual(ranks.map(() => 0))
    const parts = ranks.map((_, rank) => new Array(rank + 1).fill(rank))
    for (const { events } of ranks) {
      expect(events).toEqual([{ event: 'done', parts, resources: expect.any(Array) }])
      const resources = (events[0] as Event)['resources'] as string[]
      expect(resources.filter((name) => /TCP|Timeout/.test(name))).toEqual([])
    }
  })

  it('hear that a rank was killed, all with its number, and end by themselves', async () => {
    const ranks = await startWorld(4, 'waitForRankOne')
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[1]?.child.kill('SIGKILL')
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual([0, 'SIGKILL', 0, 0])
    for (const rank of [0, 2, 3]) {
      const events = ranks[rank]?.events ?? []
      expect(events.map(({ event }) => event)).toEqual(['ready', 'failed', 'later'])
      for (const event of events.slice(1)) {
        expect(event).toMatchObject({ code: 'ERR_MOE_EP_PEER_LOST', details: { lost: 1 } })
        expect(event['message']).toContain('rank 1 was lost')
      }
    }
  })

  it('hear that rank 0 was killed', async () => {
    const ranks = await startWorld(3, 'waitForRankZero')
    await Promise.all(ranks.map((rank) => rank.event('ready')))
    ranks[0]?.child.kill('SIGKILL')
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual(['SIGKILL', 0, 0])
    for (const rank of ranks.slice(1)) {
      expect(rank.events[1]).toMatchObject({ event: 'failed', code: 'ERR_MOE_EP_PEER_LOST', details: { lost: 0 } })
    }
  })

  it('take an exit without close for a loss', async () => {
    const ranks = await startWorld(3, 'leaveSilently')
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual([0, 0, 0])
    for (const rank of [0, 2]) {
      expect(ranks[rank]?.events).toMatchObject([
        { event: 'failed', code: 'ERR_MOE_EP_PEER_LOST', details: { lost: 1 } },
      ])
    }
  })

  it('are not kept by a group that failed and was never closed', async () => {
    const ranks = await startWorld(3, 'abandon')
    expect(await Promise.all(ranks.map((rank) => rank.ended))).toEqual([0, 0, 0])
    for (const { events } of ranks) {
      expect(events).toMatchObject([{ event: 'failed', code: 'ERR_MOE_EP_CHECK_FAILED' }])
    }
  })
})
