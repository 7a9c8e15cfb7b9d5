import { MoeEpError } from '@moe-ep/core'
import { nonceBytes, proofBytes } from './authentication.js'
import { type FailureReport, decodeReport, encodeReport } from './failure-report.js'
import { type Frame, encodeFrame } from './frame-codec.js'
import { maxWorldSize } from './limits.js'

/** What a collective is; ranks must agree on it. */
export type CollectiveKind = 'barrier' | 'allGather'

/** How a rank describes where it runs; rank 0 turns the descriptions of all ranks into nodes. */
export interface Placement {
  readonly mode: 'split' | 'local' | 'host'
  readonly key: string
}

/** Everything that crosses a rendezvous connection. */
export type Message =
  | { type: 'hello'; version: number; rank: number; worldSize: number; nonce: Uint8Array }
  | { type: 'challenge'; version: number; worldSize: number; nonce: Uint8Array; proof: Uint8Array }
  | { type: 'proof'; proof: Uint8Array }
  | { type: 'accept' }
  | { type: 'reject' }
  | { type: 'join'; placement: Placement }
  | { type: 'welcome'; nodeOfRank: readonly number[] }
  | { type: 'contribute'; sequence: number; kind: CollectiveKind; label: string; bytes: Uint8Array }
  | { type: 'part'; sequence: number; rank: number; bytes: Uint8Array }
  | { type: 'done'; sequence: number }
  | { type: 'expired'; sequence: number; timeoutMs: number }
  | { type: 'fail'; report: FailureReport }
  | { type: 'goodbye' }

type MessageOf<Type extends Message['type']> = Extract<Message, { type: Type }>

interface Codec<Type extends Message['type']> {
  readonly id: number
  encode(message: MessageOf<Type>): readonly Uint8Array[]
  decode(body: Buffer): MessageOf<Type>
}

const magic = Buffer.from('moe-ep\r\n')
const kinds: readonly CollectiveKind[] = ['barrier', 'allGather']
const placementModes: readonly Placement['mode'][] = ['split', 'local', 'host']

const codecs: { readonly [Type in Message['type']]: Codec<Type> } = {
  hello: {
    id: 1,
    encode: ({ version, rank, worldSize, nonce }) => [magic, words(version, rank, worldSize), nonce],
    decode: (body) => {
      expectSize(body, magic.length + 12 + nonceBytes)
      expect(body.subarray(0, magic.length).equals(magic), 'a greeting of another protocol')
      const [version, rank, worldSize] = readWords(body, magic.length, 3) as [number, number, number]
      return { type: 'hello', version, rank, worldSize, nonce: body.subarray(magic.length + 12) }
    },
  },
  challenge: {
    id: 2,
    encode: ({ version, worldSize, nonce, proof }) => [magic, words(version, worldSize), nonce, proof],
    decode: (body) => {
      expectSize(body, magic.length + 8 + nonceBytes + proofBytes)
      expect(body.subarray(0, magic.length).equals(magic), 'a challenge of another protocol')
      const [version, worldSize] = readWords(body, magic.length, 2) as [number, number]
      const nonce = body.subarray(magic.length + 8, magic.length + 8 + nonceBytes)
      return { type: 'challenge', version, worldSize, nonce, proof: body.subarray(magic.length + 8 + nonceBytes) }
    },
  },
  proof: {
    id: 3,
    encode: ({ proof }) => [proof],
    decode: (body) => {
      expectSize(body, proofBytes)
      return { type: 'proof', proof: body }
    },
  },
  accept: empty(4, 'accept'),
  reject: empty(5, 'reject'),
  join: {
    id: 6,
    encode: ({ placement }) => [Uint8Array.of(placementModes.indexOf(placement.mode)), Buffer.from(placement.key)],
    decode: (body) => {
      const mode = placementModes[body[0] ?? -1]
      expect(mode !== undefined && body.length <= 1024, 'a malformed placement')
      return { type: 'join', placement: { mode: mode as Placement['mode'], key: body.toString('utf8', 1) } }
    },
  },
  welcome: {
    id: 7,
    encode: ({ nodeOfRank }) => [words(...nodeOfRank)],
    decode: (body) => {
      expect(body.length % 4 === 0 && body.length <= 4 * maxWorldSize, 'a malformed table of nodes')
      return { type: 'welcome', nodeOfRank: readWords(body, 0, body.length / 4) }
    },
  },
  contribute: {
    id: 8,
    encode: ({ sequence, kind, label, bytes }) => {
      const name = Buffer.from(label)
      return [long(sequence), Uint8Array.of(kinds.indexOf(kind), name.length), name, bytes]
    },
    decode: (body) => {
      const kind = kinds[body[6] ?? -1]
      const start = 8 + (body[7] ?? 0)
      expect(kind !== undefined && body.length >= start, 'a malformed contribution')
      const label = body.toString('utf8', 8, start)
      const sequence = body.readUIntBE(0, 6)
      return { type: 'contribute', sequence, kind: kind as CollectiveKind, label, bytes: body.subarray(start) }
    },
  },
  part: {
    id: 9,
    encode: ({ sequence, rank, bytes }) => [long(sequence), words(rank), bytes],
    decode: (body) => {
      expect(body.length >= 10, 'a malformed part')
      return { type: 'part', sequence: body.readUIntBE(0, 6), rank: body.readUInt32BE(6), bytes: body.subarray(10) }
    },
  },
  done: {
    id: 10,
    encode: ({ sequence }) => [long(sequence)],
    decode: (body) => {
      expectSize(body, 6)
      return { type: 'done', sequence: body.readUIntBE(0, 6) }
    },
  },
  expired: {
    id: 11,
    encode: ({ sequence, timeoutMs }) => [long(sequence), words(timeoutMs)],
    decode: (body) => {
      expectSize(body, 10)
      return { type: 'expired', sequence: body.readUIntBE(0, 6), timeoutMs: body.readUInt32BE(6) }
    },
  },
  fail: {
    id: 12,
    encode: ({ report }) => [encodeReport(report)],
    decode: (body) => ({ type: 'fail', report: decodeReport(body) }),
  },
  goodbye: empty(13, 'goodbye'),
}

const codecOfId = new Map(Object.values(codecs).map((codec) => [codec.id, codec]))

/** Gives the frame of a message. */
export function encodeMessage(message: Message): Buffer {
  const codec = codecs[message.type] as Codec<Message['type']>
  return encodeFrame(codec.id, codec.encode(message))
}

/**
 * Gives the message in a frame; its byte fields are views of the frame.
 *
 * @throws ERR_MOE_EP_PROTOCOL for an unknown type or a malformed body
 */
export function decodeMessage(frame: Frame): Message {
  const codec = codecOfId.get(frame.type)
  if (!codec) throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `a frame of unknown type ${frame.type} arrived`)
  return codec.decode(frame.body)
}

function empty<Type extends 'accept' | 'reject' | 'goodbye'>(id: number, type: Type): Codec<Type> {
  const message = { type } as MessageOf<Type>
  return {
    id,
    encode: () => [],
    decode: (body) => {
      expectSize(body, 0)
      return message
    },
  }
}

function words(...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * values.length)
  values.forEach((value, i) => bytes.writeUInt32BE(value, 4 * i))
  return bytes
}

function readWords(body: Buffer, offset: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => body.readUInt32BE(offset + 4 * i))
}

/** Sequence numbers take 48 bits: exact in a JavaScript number and never used up. */
function long(value: number): Buffer {
  const bytes = Buffer.alloc(6)
  bytes.writeUIntBE(value, 0, 6)
  return bytes
}

function expectSize(body: Buffer, size: number): void {
  expect(body.length === size, `a message of ${body.length} instead of ${size} bytes`)
}

function expect(condition: boolean, what: string): void {
  if (!condition) throw new MoeEpError('ERR_MOE_EP_PROTOCOL', `${what} arrived`)
}
