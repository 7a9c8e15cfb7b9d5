import { MoeEpError } from '@moe-ep/core'
import { type Transcript, createNonce, prove, verify } from './authentication.js'
import type { FrameChannel } from './frame-channel.js'
import { handshakeTimeoutMs, protocolVersion } from './limits.js'
import { type Message, encodeMessage } from './messages.js'

/** What both sides of a connection must agree on. */
export interface HandshakeSettings {
  readonly secret: string
  readonly worldSize: number
  /** Largest frame to accept from a peer that has proved itself. */
  readonly frameBytes: number
}

/**
 * Rank 0's side: finds out which rank a new connection is and whether it knows the secret. `claim` takes the place
 * of that rank, or refuses; a refused peer is told so. Gives whether the rank is in.
 *
 * @throws any error when the connection proved nothing and is to be dropped
 */
export async function acceptSpoke(
  channel: FrameChannel,
  settings: HandshakeSettings,
  claim: (rank: number) => boolean,
): Promise<boolean> {
  const { secret, worldSize } = settings
  const hello = await expectMessage(channel, 'hello', handshakeTimeoutMs)
  const transcript: Transcript = {
    spokeVersion: hello.version,
    hubVersion: protocolVersion,
    rank: hello.rank,
    spokeWorldSize: hello.worldSize,
    hubWorldSize: worldSize,
    spokeNonce: hello.nonce,
    hubNonce: createNonce(),
  }
  const proof = prove(secret, 'hub', transcript)
  channel.send(
    encodeMessage({ type: 'challenge', version: protocolVersion, worldSize, nonce: transcript.hubNonce, proof }),
  )
  const answer = await expectMessage(channel, 'proof', handshakeTimeoutMs)
  if (!verify(secret, 'spoke', transcript, answer.proof)) {
    throw new MoeEpError('ERR_MOE_EP_AUTH', 'a connection could not prove that it knows the secret')
  }
  const fits = hello.version === protocolVersion && hello.worldSize === worldSize && hello.rank < worldSize
  if (!fits || !claim(hello.rank)) {
    channel.send(encodeMessage({ type: 'reject' }))
    return false
  }
  channel.trust(settings.frameBytes)
  channel.send(encodeMessage({ type: 'accept' }))
  return true
}

/**
 * The dialler's side: proves itself to rank 0 and lets rank 0 prove itself.
 *
 * @throws ERR_MOE_EP_AUTH when the secrets differ, ERR_MOE_EP_PROTOCOL when versions or world sizes differ, the
 *   rank is taken or something else than a rendezvous answers; ERR_MOE_EP_CONNECT and ERR_MOE_EP_TIMEOUT when
 *   another attempt may succeed
 */
export async function proveToHub(
  channel: FrameChannel,
  settings: HandshakeSettings & { rank: number; timeoutMs: number; signal: AbortSignal | undefined },
): Promise<void> {
  const { secret, rank, worldSize, timeoutMs, signal } = settings
  const nonce = createNonce()
  channel.send(encodeMessage({ type: 'hello', version: protocolVersion, rank, worldSize, nonce }))
  const challenge = await expectMessage(channel, 'challenge', Math.min(timeoutMs, 2 * handshakeTimeoutMs), signal)
  const transcript: Transcript = {
    spokeVersion: protocolVersion,
    hubVersion: challenge.version,
    rank,
    spokeWorldSize: worldSize,
    hubWorldSize: challenge.worldSize,
    spokeNonce: nonce,
    hubNonce: challenge.nonce,
  }
  if (!verify(secret, 'hub', transcript, challenge.proof)) {
    throw new MoeEpError('ERR_MOE_EP_AUTH', `rank ${rank}: rank 0 could not prove that it knows this rank's secret`)
  }
  checkAgreement('protocol version', rank, protocolVersion, challenge.version)
  checkAgreement('world size', rank, worldSize, challenge.worldSize)
  channel.trust(settings.frameBytes)
  channel.send(encodeMessage({ type: 'proof', proof: prove(secret, 'spoke', transcript) }))
  // From here rank 0 may count on this rank, so it must not hang up and dial again: it waits as long as it can.
  const verdict = await channel.next({ timeoutMs, signal })
  if (verdict.type === 'reject') {
    throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `rank ${rank}: another process has joined as rank ${rank} already`)
  }
  if (verdict.type !== 'accept') throw unexpected(verdict)
}

async function expectMessage<Type extends Message['type']>(
  channel: FrameChannel,
  type: Type,
  timeoutMs: number,
  signal?: AbortSignal,
): Promise<Extract<Message, { type: Type }>> {
  const message = await channel.next({ timeoutMs, signal })
  if (message.type !== type) throw unexpected(message)
  return message as Extract<Message, { type: Type }>
}

function unexpected(message: Message): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_PROTOCOL', `'${message.type}' arrived during the handshake`)
}

function checkAgreement(what: string, rank: number, mine: number, theirs: number): void {
  if (mine === theirs) return
  throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `rank ${rank}: ${what} ${mine} here, ${theirs} on rank 0`, {
    details: { mine, theirs },
  })
}
