import fc from 'fast-check'
import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { FrameReader, type Frame } from '../../src/rendezvous/frame-codec.js'
import { type Message, decodeMessage, encodeMessage } from '../../src/rendezvous/messages.js'

const word = fc.integer({ min: 0, max: 2 ** 32 - 1 })
const sequence = fc.integer({ min: 0, max: 2 ** 48 - 1 })
const bytes = fc.uint8Array({ maxLength: 64 })
const exactly = (length: number) => fc.uint8Array({ minLength: length, maxLength: length })

const messages: fc.Arbitrary<Message> = fc.oneof(
  fc.record({ type: fc.constant('hello' as const), version: word, rank: word, worldSize: word, nonce: exactly(32) }),
  fc.record({
    type: fc.constant('challenge' as const),
    version: word,
    worldSize: word,
    nonce: exactly(32),
    proof: exactly(32),
  }),
  fc.record({ type: fc.constant('proof' as const), proof: exactly(32) }),
  fc.constantFrom<Message>({ type: 'accept' }, { type: 'reject' }, { type: 'goodbye' }),
  fc.record({
    type: fc.constant('join' as const),
    placement: fc.record({ mode: fc.constantFrom('split', 'local', 'host'), key: fc.string({ maxLength: 100 }) }),
  }),
  fc.record({ type: fc.constant('welcome' as const), nodeOfRank: fc.array(word, { maxLength: 64 }) }),
  fc.record({
    ...{ type: fc.constant('contribute' as const), sequence, bytes },
    ...{ kind: fc.constantFrom('barrier', 'allGather'), label: fc.string({ maxLength: 60 }) },
  }),
  fc.record({ type: fc.constant('part' as const), sequence, rank: word, bytes }),
  fc.record({ type: fc.constant('done' as const), sequence }),
  fc.record({ type: fc.constant('expired' as const), sequence, timeoutMs: word }),
  fc.record({
    type: fc.constant('fail' as const),
    report: fc.record({
      code: fc.constantFrom('ERR_MOE_EP_TIMEOUT', 'ERR_MOE_EP_ABORTED'),
      message: fc.string({ maxLength: 100 }),
      origin: fc.integer({ min: 0, max: 4095 }),
      details: fc.constantFrom({}, { missing: [1, 2] }),
    }),
  }),
) as fc.Arbitrary<Message>

function frameOf(encoded: Uint8Array): Frame {
  const received: Frame[] = []
  new FrameReader(100_000).push(encoded, (frame) => received.push(frame))
  expect(received).toHaveLength(1)
  return received[0] as Frame
}

/** Byte fields as plain arrays: a Buffer and a Uint8Array of the same bytes are the same message. */
function plain(message: Message): unknown {
  return JSON.parse(
    JSON.stringify(message, (_, value) =>
      value?.type === 'Buffer' ? value.data : ArrayBuffer.isView(value) ? [...(value as Uint8Array)] : value,
    ),
  )
}

describe('messages', () => {
  it('come back as they were sent', () => {
    fc.assert(
      fc.property(messages, (message) => {
        expect(plain(decodeMessage(frameOf(encodeMessage(message))))).toEqual(plain(message))
      }),
    )
  })

  it('of any other content are refused by name, never by a crash', () => {
    const garbage = fc.record({ type: fc.integer({ min: 0, max: 20 }), body: fc.uint8Array({ maxLength: 120 }) })
    fc.assert(
      fc.property(garbage, ({ type, body }) => {
        try {
          decodeMessage({ type, body: Buffer.from(body) })
        } catch (error) {
          expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_PROTOCOL')).toBe(true)
        }
      }),
      { numRuns: 1000 },
    )
  })

  it.each([
    [0, ''],
    [99, ''],
    [1, 'GET / HTTP/1.1'],
    [4, 'x'],
    [6, ''],
    [7, 'abc'],
    [8, 'short'],
    [9, ''],
    [12, '{}'],
    [12, '{"code":"ERR_OTHER","message":"m","origin":0,"details":{}}'],
    [12, 'not json'],
  ])('of type %i with body %j are refused', (type, body) => {
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_PROTOCOL' })
    expect(() => decodeMessage({ type, body: Buffer.from(body) })).toThrow(refused)
  })

  it('cut reports that are too long and drop details that cannot be written', () => {
    const cyclic: Record<string, unknown> = {}
    cyclic['self'] = cyclic
    const report = { code: 'ERR_MOE_EP_INTERNAL', message: 'x'.repeat(100_000), origin: 1, details: cyclic } as const
    const encoded = encodeMessage({ type: 'fail', report })
    expect(encoded.length).toBeLessThan(5_000)
    const message = decodeMessage(frameOf(encoded))
    expect(message).toMatchObject({ type: 'fail', report: { code: 'ERR_MOE_EP_INTERNAL', origin: 1, details: {} } })
  })
})
