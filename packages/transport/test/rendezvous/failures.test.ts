import { MoeEpError } from '@moe-ep/core'
import { afterEach, describe, expect, it } from 'vitest'
import { type ConnectOptions, type ProcessGroup, connect } from '../../src/rendezvous/index.js'
import { closeWorld, codesOf, failureOf, freePort, openWorld, rankOptions } from './world.js'

type Trio = [ProcessGroup, ProcessGroup, ProcessGroup]
let opened: ProcessGroup[] = []

async function openTrio(extra: ConnectOptions = {}): Promise<Trio> {
  opened = await openWorld(3, extra)
  return opened as Trio
}

afterEach(async () => {
  await closeWorld(opened)
  opened = []
})

/** How every rank's next call fails once the group has. */
async function laterFailures(groups: readonly ProcessGroup[]): Promise<MoeEpError[]> {
  await Promise.all(groups.map((group) => new Promise((resolve) => group.onFailure(resolve))))
  return Promise.all(groups.map((group) => failureOf(group.barrier())))
}

describe('ranks that call different collectives', () => {
  it.each<[string, (group: ProcessGroup) => Promise<unknown>]>([
    ['barrier and allGather', (group) => (group.rank === 2 ? group.allGather(new Uint8Array(1)) : group.barrier())],
    ['labels', (group) => group.barrier({ label: group.rank === 1 ? 'here' : 'there' })],
    [
      'order',
      (group) =>
        Promise.all(
          group.rank === 0
            ? [group.barrier(), group.allGather(new Uint8Array(1))]
            : [group.allGather(new Uint8Array(1)), group.barrier()],
        ),
    ],
  ])('get a protocol error on every rank: %s', async (_, call) => {
    const groups = await openTrio()
    const errors = await Promise.all(groups.map((group) => failureOf(call(group))))
    expect(codesOf(errors)).toEqual(groups.map(() => 'ERR_MOE_EP_PROTOCOL'))
    for (const error of errors)
      expect(error.message).toMatch(/different collectives: rank \d called .*, rank \d called/)
  })
})

describe('a collective whose deadline passes', () => {
  it.each([0, 1])('names itself and the missing ranks everywhere when rank %i waits', async (waiting) => {
    const groups = await openTrio()
    const error = await failureOf(groups[waiting as 0].barrier({ timeoutMs: 60, label: 'lonely' }))
    const missing = [0, 1, 2].filter((rank) => rank !== waiting)
    expect(error).toMatchObject({
      code: 'ERR_MOE_EP_TIMEOUT',
      details: { missing, rank: waiting, operation: 'barrier #1 (lonely)' },
    })
    expect(error.message).toContain(`timed out on rank ${waiting} after 60 ms; missing ranks: ${missing.join(', ')}`)
    for (const later of await laterFailures(groups)) {
      expect(later).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', details: { missing, origin: waiting } })
    }
  })

  it('uses the deadline of the group by default', async () => {
    const [, second] = await openTrio({ timeoutMs: 500 })
    expect(await failureOf(second.allGather(new Uint8Array(4)))).toMatchObject({
      code: 'ERR_MOE_EP_TIMEOUT',
      details: { timeoutMs: 500 },
    })
  })

  it('does not time out what arrived while this thread was busy', async () => {
    const [first, second, third] = await openTrio()
    const calls = [second, third].map((group) => group.barrier())
    await new Promise((resolve) => setTimeout(resolve, 50))
    const last = first.barrier()
    const waiting = second.barrier({ timeoutMs: 40 })
    const others = [first.barrier(), third.barrier()]
    const until = performance.now() + 120
    while (performance.now() < until);
    await Promise.all([...calls, last, waiting, ...others])
    expect(second.failure).toBeUndefined()
  })
})

describe('an AbortSignal', () => {
  it.each([0, 2])('fails the call of rank %i and the group on every rank', async (aborting) => {
    const groups = await openTrio()
    const controller = new AbortController()
    const call = failureOf(groups[aborting as 0].barrier({ signal: controller.signal }))
    const other = failureOf(groups[1].barrier())
    controller.abort(new Error('enough'))
    const error = await call
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_ABORTED', cause: { message: 'enough' } })
    expect(await other).toMatchObject({ code: 'ERR_MOE_EP_ABORTED', cause: { details: { rank: aborting } } })
    expect(codesOf(await laterFailures(groups))).toEqual(groups.map(() => 'ERR_MOE_EP_ABORTED'))
  })

  it('that has aborted before rejects the call and leaves the group alone', async () => {
    const groups = await openTrio()
    const error = await failureOf(groups[1].barrier({ signal: AbortSignal.abort() }))
    expect(error.code).toBe('ERR_MOE_EP_ABORTED')
    await Promise.all(groups.map((group) => group.barrier()))
  })

  it('leaves no listener behind on a signal that lives on', async () => {
    const groups = await openTrio()
    const { signal } = new AbortController()
    let listening = 0
    const add = signal.addEventListener.bind(signal)
    const remove = signal.removeEventListener.bind(signal)
    signal.addEventListener = (...args: Parameters<typeof add>) => (listening++, add(...args))
    signal.removeEventListener = (...args: Parameters<typeof remove>) => (listening--, remove(...args))
    await Promise.all(groups.map((group) => group.barrier({ signal })))
    expect(listening).toBe(0)
  })
})

describe('abort', () => {
  it('poisons every rank with the code of the error and names the origin', async () => {
    const groups = await openTrio()
    const heard = groups.map((group) => new Promise<MoeEpError>((resolve) => group.onFailure(resolve)))
    const pending = failureOf(groups[0].barrier())
    const poison = new MoeEpError('ERR_MOE_EP_CAPACITY', 'too many rows', { details: { rows: 12 } })
    groups[2].abort(poison)
    expect(await pending).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', cause: { details: { rank: 2, rows: 12 } } })
    expect(codesOf(await Promise.all(heard))).toEqual(groups.map(() => 'ERR_MOE_EP_CAPACITY'))
    expect(groups[2].failure).toBe(poison)
    expect(groups[1].failure?.message).toContain('rank 2 failed the group: too many rows')
    groups[1].abort(new MoeEpError('ERR_MOE_EP_INTERNAL', 'too late'))
    expect(groups[1].failure?.code).toBe('ERR_MOE_EP_CAPACITY')
  })

  it('tells a listener that comes later at once, and one that left nothing', async () => {
    const [first] = await openTrio()
    const calls: string[] = []
    first.onFailure(() => calls.push('left'))()
    first.onFailure(() => calls.push('early'))
    first.abort(new MoeEpError('ERR_MOE_EP_INTERNAL', 'broken'))
    first.onFailure(() => calls.push('late'))
    expect(calls).toEqual(['early', 'late'])
  })

  it('leaves no rejection unhandled, though nobody awaits the calls', async () => {
    const unhandled: unknown[] = []
    const note = (reason: unknown) => unhandled.push(reason)
    process.on('unhandledRejection', note)
    const groups = await openTrio()
    for (const group of groups.slice(0, 2)) {
      void group.barrier()
      void group.allGather(new Uint8Array(8))
    }
    groups[1].abort(new MoeEpError('ERR_MOE_EP_INTERNAL', 'broken'))
    await laterFailures(groups)
    await new Promise((resolve) => setTimeout(resolve, 20))
    process.off('unhandledRejection', note)
    expect(unhandled).toEqual([])
  })
})

describe('close', () => {
  it('is no loss for the others, in whatever order', async () => {
    for (const order of [
      [0, 1, 2],
      [2, 1, 0],
      [1, 0, 2],
    ] as const) {
      const groups = await openTrio()
      await Promise.all(groups.map((group) => group.barrier()))
      for (const rank of order) {
        await groups[rank].close()
        expect(groups.map((group) => group.failure)).toEqual([undefined, undefined, undefined])
      }
    }
  })

  it.each([0, 1])('of rank %i gives a named error to a rank that calls a collective later', async (closing) => {
    const groups = await openTrio()
    await groups[closing as 0].close()
    const error = await failureOf(groups[2].barrier())
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_ABORTED', details: { closed: closing } })
    expect(error.message).toContain(`rank ${closing} closed the group`)
  })

  it.each([0, 1])('of rank %i gives a named error to a rank that is waiting', async (closing) => {
    const groups = await openTrio()
    const waiting = failureOf(groups[2].barrier())
    await new Promise((resolve) => setTimeout(resolve, 20))
    await groups[closing as 0].close()
    expect(await waiting).toMatchObject({ code: 'ERR_MOE_EP_ABORTED', details: { closed: closing } })
  })

  it('after a contribution lets the others complete that collective', async () => {
    const groups = await openTrio()
    const own = failureOf(groups[1].allGather(Uint8Array.of(7)))
    await groups[1].close()
    expect((await own).code).toBe('ERR_MOE_EP_ABORTED')
    const results = await Promise.all([groups[0], groups[2]].map((group) => group.allGather(new Uint8Array(0))))
    for (const result of results) expect(result[1]).toEqual(Uint8Array.of(7))
  })

  it('ends the group: later calls reject, repeated closes are one', async () => {
    const groups = await openTrio()
    const [first] = groups
    const closing = first.close()
    expect(first.close()).toBe(closing)
    expect((await failureOf(first.barrier())).code).toBe('ERR_MOE_EP_RELEASED')
    await closing
    expect((await failureOf(first.allGather(new Uint8Array(1)))).code).toBe('ERR_MOE_EP_RELEASED')
    first.abort(new MoeEpError('ERR_MOE_EP_INTERNAL', 'closed already'))
    expect(first.failure).toBeUndefined()
  })

  it('happens by itself at the end of an `await using` block', async () => {
    const group = await connect({ environment: {} })
    {
      await using held = group
      await held.barrier()
    }
    expect((await failureOf(group.barrier())).code).toBe('ERR_MOE_EP_RELEASED')
  })
})

describe('connect', () => {
  it('names the missing ranks on every rank that joined, whoever runs out of time first', async () => {
    for (const timeouts of [
      [1000, 9000],
      [9000, 1000],
    ] as const) {
      const port = await freePort()
      const calls = timeouts.map((timeoutMs, rank) => failureOf(connect(rankOptions(rank, 4, port, { timeoutMs }))))
      for (const error of await Promise.all(calls)) {
        expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', details: { missing: [2, 3], timeoutMs: 1000 } })
        expect(error.message).toContain('missing ranks: 2, 3')
      }
    }
  })

  it('gives up on a rank 0 that is not there', async () => {
    const error = await failureOf(connect(rankOptions(1, 2, await freePort(), { timeoutMs: 200 })))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_CONNECT', details: { rank: 1, timeoutMs: 200 } })
    expect(error.message).toContain('ECONNREFUSED')
  })

  it('says when the port is taken', async () => {
    const port = await freePort()
    const controller = new AbortController()
    const first = failureOf(connect(rankOptions(0, 2, port, { signal: controller.signal })))
    await new Promise((resolve) => setTimeout(resolve, 50))
    const error = await failureOf(connect(rankOptions(0, 2, port)))
    expect(error.code).toBe('ERR_MOE_EP_CONNECT')
    expect(error.message).toContain('EADDRINUSE')
    controller.abort()
    expect((await first).code).toBe('ERR_MOE_EP_ABORTED')
  })

  it.each([0, 1, 2])('aborted on rank %i fails on all that joined', async (aborting) => {
    const port = await freePort()
    const controller = new AbortController()
    const calls = [0, 1, 2].map((rank) =>
      failureOf(connect(rankOptions(rank, 4, port, rank === aborting ? { signal: controller.signal } : {}))),
    )
    await new Promise((resolve) => setTimeout(resolve, 500))
    controller.abort(new Error('changed my mind'))
    const errors = await Promise.all(calls)
    expect(codesOf(errors)).toEqual(['ERR_MOE_EP_ABORTED', 'ERR_MOE_EP_ABORTED', 'ERR_MOE_EP_ABORTED'])
    expect(errors[aborting]?.cause).toMatchObject({ message: 'changed my mind' })
    for (const error of errors) expect(error.message).toContain(`aborted`)
  })

  it('rejects at once when its signal has aborted, and when it aborts while dialling', async () => {
    const port = await freePort()
    expect((await failureOf(connect(rankOptions(1, 2, port, { signal: AbortSignal.abort() })))).code).toBe(
      'ERR_MOE_EP_ABORTED',
    )
    const dialling = connect(rankOptions(1, 2, port, { signal: AbortSignal.timeout(60) }))
    expect((await failureOf(dialling)).code).toBe('ERR_MOE_EP_ABORTED')
  })

  it('refuses ranks that disagree about nodes, on every rank', async () => {
    const port = await freePort()
    const calls = [2, 2, 1].map((nodes, rank) => failureOf(connect(rankOptions(rank, 3, port, { nodes }))))
    for (const error of await Promise.all(calls)) {
      expect(error).toMatchObject({ code: 'ERR_MOE_EP_MISMATCH', details: { mismatched: 2 } })
    }
  })
})
