import { type Socket, connect as connectSocket, createServer } from 'node:net'
import type { MoeEpError } from '@moe-ep/core'
import { afterEach, describe, expect, it } from 'vitest'
import { createNonce, prove } from '../../src/rendezvous/authentication.js'
import { FrameChannel } from '../../src/rendezvous/frame-channel.js'
import { encodeFrame } from '../../src/rendezvous/frame-codec.js'
import { acceptSpoke, proveToHub } from '../../src/rendezvous/handshake.js'
import { type ProcessGroup, connect } from '../../src/rendezvous/index.js'
import { type Message, encodeMessage } from '../../src/rendezvous/messages.js'
import { closeWorld, codesOf, failureOf, freePort, rankOptions, secret } from './world.js'

const cleanUps: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0)) await cleanUp()
})

/** A raw connection to rank 0, as soon as that listens. */
async function openRaw(port: number): Promise<Socket> {
  for (;;) {
    const socket = connectSocket({ host: '127.0.0.1', port })
    const connected = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true))
      socket.once('error', () => resolve(false))
    })
    socket.on('error', () => {})
    if (connected) {
      cleanUps.push(() => socket.destroy())
      return socket
    }
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

function closedByPeer(socket: Socket): Promise<void> {
  socket.resume()
  return new Promise((resolve) => socket.once('close', () => resolve()))
}

/** A rank that has joined properly and can then send whatever a test wants. */
async function joinRaw(
  port: number,
  rank: number,
  worldSize: number,
): Promise<{ socket: Socket; channel: FrameChannel }> {
  const socket = await openRaw(port)
  const channel = new FrameChannel(socket)
  await proveToHub(channel, { secret, rank, worldSize, timeoutMs: 5000, signal: undefined, frameBytes: 2 ** 20 })
  channel.send(encodeMessage({ type: 'join', placement: { mode: 'split', key: '1' } }))
  return { socket, channel }
}

async function checkWorldForms(calls: Promise<ProcessGroup>[]): Promise<void> {
  const groups = await Promise.all(calls)
  await Promise.all(groups.map((group) => group.barrier()))
  await closeWorld(groups)
}

const hello = { type: 'hello', version: 1, rank: 1, worldSize: 2, nonce: new Uint8Array(32) } as const

describe('rank 0 and connections that prove nothing', () => {
  it.each<[string, Uint8Array]>([
    ['another protocol', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
    ['an oversized length', Uint8Array.of(0x7f, 0xff, 0xff, 0xff, 1)],
    ['a frame just over the early limit', encodeFrame(1, [new Uint8Array(257)])],
    ['an empty frame', new Uint8Array(4)],
    ['an unknown type', encodeFrame(200)],
    ['a message out of turn', encodeMessage({ type: 'goodbye' })],
    [
      'a collective before the handshake',
      encodeMessage({ type: 'contribute', sequence: 1, kind: 'barrier', label: '', bytes: new Uint8Array(0) }),
    ],
    ['a flood of small frames', Buffer.concat(Array.from({ length: 5000 }, () => encodeMessage({ type: 'accept' })))],
    [
      'a greeting with a made-up proof',
      Buffer.concat([encodeMessage(hello), encodeMessage({ type: 'proof', proof: new Uint8Array(32) })]),
    ],
  ])('drops %s and goes on', async (_, bytes) => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const socket = await openRaw(port)
    socket.write(bytes)
    await closedByPeer(socket)
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })

  it('drops who sends its own proof back to it', async () => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const channel = new FrameChannel(await openRaw(port))
    channel.send(encodeMessage(hello))
    const challenge = (await channel.next({ timeoutMs: 5000 })) as Extract<Message, { type: 'challenge' }>
    expect(challenge.type).toBe('challenge')
    channel.send(encodeMessage({ type: 'proof', proof: challenge.proof }))
    expect((await failureOf(channel.next({ timeoutMs: 5000 }))).code).toBe('ERR_MOE_EP_CONNECT')
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })

  it('lets a rank in past hundreds of silent and half-open connections, and drops them all', async () => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const sockets = await Promise.all(Array.from({ length: 400 }, () => openRaw(port)))
    sockets.slice(0, 50).forEach((socket) => socket.end())
    sockets.slice(50, 100).forEach((socket) => socket.write(encodeMessage(hello).subarray(0, 10)))
    const closed = sockets.map(closedByPeer)
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
    await Promise.all(closed)
  })

  it('drops a connection that never finishes its greeting, though bytes keep coming', async () => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const socket = await openRaw(port)
    const bytes = encodeMessage(hello)
    let sent = 0
    const drip = setInterval(() => socket.write(bytes.subarray(sent, ++sent)), 500)
    cleanUps.push(() => clearInterval(drip))
    await closedByPeer(socket)
    expect(sent).toBeLessThan(bytes.length)
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })
})

describe('rank 0 and ranks that do not fit', () => {
  it('lets a rank with another secret fail at once, and goes on', async () => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const error = await failureOf(connect(rankOptions(1, 2, port, { secret: 'a secret of another run' })))
    expect(error.code).toBe('ERR_MOE_EP_AUTH')
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })

  it('lets a rank of another world size fail by name, and goes on', async () => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const error = await failureOf(connect(rankOptions(2, 3, port)))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_PROTOCOL', details: { mine: 3, theirs: 2 } })
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })

  it('refuses a second process of the same rank, and goes on', async () => {
    const port = await freePort()
    const calls = [0, 1].map((rank) => connect(rankOptions(rank, 3, port)))
    const twin = connect(rankOptions(1, 3, port))
    const error = await Promise.any([failureOf(twin), failureOf(calls[1] as Promise<ProcessGroup>)])
    expect(error.code).toBe('ERR_MOE_EP_PROTOCOL')
    expect(error.message).toContain('another process has joined as rank 1')
    const third = connect(rankOptions(2, 3, port))
    const joined = await Promise.any([twin, calls[1] as Promise<ProcessGroup>])
    await checkWorldForms([calls[0] as Promise<ProcessGroup>, Promise.resolve(joined), third])
  })

  it.each([
    ['another version', { version: 9, rank: 1, worldSize: 2 }],
    ['a rank beyond the world', { version: 1, rank: 2, worldSize: 2 }],
    ['the place of rank 0', { version: 1, rank: 0, worldSize: 2 }],
  ])('refuses %s, though the secret is known', async (_, claim) => {
    const port = await freePort()
    const first = connect(rankOptions(0, 2, port))
    const channel = new FrameChannel(await openRaw(port))
    const nonce = createNonce()
    channel.send(encodeMessage({ type: 'hello', ...claim, nonce }))
    const challenge = (await channel.next({ timeoutMs: 5000 })) as Extract<Message, { type: 'challenge' }>
    const proof = prove(secret, 'spoke', {
      ...{ spokeVersion: claim.version, hubVersion: challenge.version, rank: claim.rank },
      ...{
        spokeWorldSize: claim.worldSize,
        hubWorldSize: challenge.worldSize,
        spokeNonce: nonce,
        hubNonce: challenge.nonce,
      },
    })
    channel.send(encodeMessage({ type: 'proof', proof }))
    expect(await channel.next({ timeoutMs: 5000 })).toEqual({ type: 'reject' })
    await checkWorldForms([first, connect(rankOptions(1, 2, port))])
  })

  it('fails all that joined when a rank that had joined goes away', async () => {
    const port = await freePort()
    const first = failureOf(connect(rankOptions(0, 3, port)))
    const { socket } = await joinRaw(port, 2, 3)
    socket.destroy()
    expect(await first).toMatchObject({ code: 'ERR_MOE_EP_PEER_LOST', details: { lost: 2 } })
  })
})

describe('a group and a member that breaks the protocol', () => {
  async function openWithRogue() {
    const port = await freePort()
    const calls = [0, 1].map((rank) => connect(rankOptions(rank, 3, port, { nodes: 1, maxFrameBytes: 4096 })))
    const { socket, channel } = await joinRaw(port, 2, 3)
    expect((await channel.next({ timeoutMs: 5000 })).type).toBe('welcome')
    const groups = await Promise.all(calls)
    cleanUps.push(() => closeWorld(groups))
    return { groups, socket }
  }
  const barrier = { type: 'contribute', kind: 'barrier', label: '', bytes: new Uint8Array(0) } as const

  it.each<[string, Uint8Array]>([
    ['an oversized frame', Uint8Array.of(0xff, 0xff, 0xff, 0xff)],
    ['a frame over the limit of the group', encodeFrame(8, [new Uint8Array(4096 + 65_537)])],
    ['an unknown type', encodeFrame(77)],
    ['a malformed contribution', encodeFrame(8, [new Uint8Array(3)])],
    ['a message that only rank 0 may send', encodeMessage({ type: 'done', sequence: 1 })],
    ['a second join', encodeMessage({ type: 'join', placement: { mode: 'split', key: '1' } })],
    ['a skipped collective', encodeMessage({ ...barrier, sequence: 2 })],
    ['a repeated collective', Buffer.concat([1, 1].map((sequence) => encodeMessage({ ...barrier, sequence })))],
    [
      'work after its goodbye',
      Buffer.concat([encodeMessage({ type: 'goodbye' }), encodeMessage({ ...barrier, sequence: 1 })]),
    ],
  ])('fails with a protocol error on every rank: %s', async (_, bytes) => {
    const { groups, socket } = await openWithRogue()
    const failures = groups.map((group) => new Promise<MoeEpError>((resolve) => group.onFailure(resolve)))
    socket.write(bytes)
    const errors = await Promise.all(failures)
    expect(codesOf(await Promise.all(groups.map((group) => failureOf(group.barrier()))))).toEqual(codesOf(errors))
    expect(codesOf(errors)).toEqual(['ERR_MOE_EP_PROTOCOL', 'ERR_MOE_EP_PROTOCOL'])
    for (const error of errors) expect(error.message).toContain('rank 2')
    await closedByPeer(socket)
  })

  it('calls it lost when its connection ends inside a frame', async () => {
    const { groups, socket } = await openWithRogue()
    const calls = groups.map((group) => failureOf(group.barrier()))
    socket.end(encodeMessage({ ...barrier, sequence: 1 }).subarray(0, 6))
    for (const error of await Promise.all(calls)) {
      expect(error).toMatchObject({ code: 'ERR_MOE_EP_PEER_LOST', details: { lost: 2 } })
    }
  })
})

describe('a rank and whoever answers in place of rank 0', () => {
  /** A listener that treats every connection as a test wants. */
  async function listen(serve: (channel: FrameChannel, socket: Socket) => unknown): Promise<number> {
    const server = createServer((socket) => {
      const channel = new FrameChannel(socket)
      cleanUps.push(() => socket.destroy())
      serve(channel, socket)
    })
    const port = await freePort()
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
    cleanUps.push(() => server.close())
    return port
  }
  const accept = (channel: FrameChannel, worldSize = 2) =>
    acceptSpoke(channel, { secret, worldSize, frameBytes: 2 ** 20 }, () => true)

  it('does not believe one that has no proof', async () => {
    const port = await listen(async (channel) => {
      await channel.next({ timeoutMs: 5000 })
      const proof = new Uint8Array(32)
      channel.send(encodeMessage({ type: 'challenge', version: 1, worldSize: 2, nonce: new Uint8Array(32), proof }))
    })
    expect((await failureOf(connect(rankOptions(1, 2, port)))).code).toBe('ERR_MOE_EP_AUTH')
  })

  it('says that it is no rendezvous', async () => {
    const port = await listen((_, socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'))
    expect((await failureOf(connect(rankOptions(1, 2, port)))).code).toBe('ERR_MOE_EP_PROTOCOL')
  })

  it('dials again while connections are closed without a word', async () => {
    let numConnections = 0
    const port = await listen((_, socket) => {
      numConnections++
      socket.end()
    })
    const error = await failureOf(connect(rankOptions(1, 2, port, { timeoutMs: 400 })))
    expect(error.code).toBe('ERR_MOE_EP_CONNECT')
    expect(numConnections).toBeGreaterThan(1)
  })

  it('gives up in time on one that is silent before or after the handshake', async () => {
    const silent = await listen(() => {})
    expect((await failureOf(connect(rankOptions(1, 2, silent, { timeoutMs: 200 })))).code).toBe('ERR_MOE_EP_CONNECT')
    const idle = await listen((channel) => accept(channel))
    const error = await failureOf(connect(rankOptions(1, 2, idle, { timeoutMs: 200 })))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', details: { missing: [0] } })
  })

  it.each<[string, Message]>([
    ['no welcome', { type: 'done', sequence: 1 }],
    ['a table of another length', { type: 'welcome', nodeOfRank: [0, 0, 0] }],
    ['a table with a gap', { type: 'welcome', nodeOfRank: [0, 2] }],
  ])('refuses %s', async (_, message) => {
    const port = await listen(async (channel) => {
      await accept(channel)
      channel.send(encodeMessage(message))
    })
    expect((await failureOf(connect(rankOptions(1, 2, port)))).code).toBe('ERR_MOE_EP_PROTOCOL')
  })

  it.each<[string, Message[]]>([
    ['results that nobody asked for', [{ type: 'part', sequence: 9, rank: 0, bytes: new Uint8Array(1) }]],
    ['a part of a rank that is not there', [{ type: 'part', sequence: 1, rank: 7, bytes: new Uint8Array(1) }]],
    ['an end before all parts', [{ type: 'done', sequence: 1 }]],
    ['messages that only ranks send', [{ type: 'expired', sequence: 1, timeoutMs: 1 }]],
  ])('fails by name on %s', async (_, messages) => {
    const port = await listen(async (channel) => {
      await accept(channel)
      await channel.next({ timeoutMs: 5000 })
      channel.send(encodeMessage({ type: 'welcome', nodeOfRank: [0, 0] }))
      await channel.next({ timeoutMs: 5000 })
      channel.send(...messages.map(encodeMessage))
    })
    const group = await connect(rankOptions(1, 2, port))
    const error = await failureOf(group.allGather(new Uint8Array(2)))
    expect(error.code).toBe('ERR_MOE_EP_PROTOCOL')
    expect(error.message).toContain('rank 0')
    await group.close()
  })

  it('reports a timeout by itself when rank 0 does not answer any more', async () => {
    const port = await listen(async (channel) => {
      await accept(channel)
      await channel.next({ timeoutMs: 5000 })
      channel.send(encodeMessage({ type: 'welcome', nodeOfRank: [0, 0] }))
    })
    const group = await connect(rankOptions(1, 2, port))
    const error = await failureOf(group.barrier({ timeoutMs: 50 }))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', details: { missing: [0], rank: 1 } })
    await group.close({ timeoutMs: 100 })
  })
})
