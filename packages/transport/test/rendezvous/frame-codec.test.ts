import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Frame, FrameReader, encodeFrame } from '../../src/rendezvous/frame-codec.js'

const frames = fc.array(
  fc.record({ type: fc.integer({ min: 0, max: 255 }), body: fc.uint8Array({ maxLength: 300 }) }),
  { maxLength: 8 },
)

function read(reader: FrameReader, chunks: readonly Uint8Array[]): Frame[] {
  const received: Frame[] = []
  for (const chunk of chunks) reader.push(chunk, (frame) => received.push(frame))
  return received
}

function cut(bytes: Uint8Array, places: readonly number[]): Uint8Array[] {
  const borders = [0, ...places.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b), bytes.length]
  return borders.slice(1).map((border, i) => bytes.subarray(borders[i], border))
}

describe('FrameReader', () => {
  it('gives back what was encoded, however the stream is cut', () => {
    fc.assert(
      fc.property(frames, fc.array(fc.nat(), { maxLength: 40 }), (sent, places) => {
        const stream = Buffer.concat(sent.map(({ type, body }) => encodeFrame(type, [body])))
        const received = read(new FrameReader(300), cut(stream, places))
        expect(received.map(({ type, body }) => ({ type, body: [...body] }))).toEqual(
          sent.map(({ type, body }) => ({ type, body: [...body] })),
        )
      }),
    )
  })

  it('takes a stream byte by byte', () => {
    const stream = Buffer.concat([encodeFrame(7, [Buffer.from('abc'), Buffer.from('de')]), encodeFrame(8)])
    const received = read(
      new FrameReader(5),
      [...stream].map((byte) => Uint8Array.of(byte)),
    )
    expect(received.map(({ type, body }) => [type, body.toString()])).toEqual([
      [7, 'abcde'],
      [8, ''],
    ])
  })

  it('gives nothing for a truncated frame', () => {
    const stream = encodeFrame(1, [new Uint8Array(10)])
    expect(read(new FrameReader(10), [stream.subarray(0, -1)])).toEqual([])
  })

  it('refuses a length over the limit as soon as it is known, whatever follows', () => {
    const header = Uint8Array.of(0xff, 0xff, 0xff, 0xff)
    const refused = expect.objectContaining({
      code: 'ERR_MOE_EP_PROTOCOL',
      details: { frameBytes: 2 ** 32 - 2, limit: 300 },
    })
    expect(() => read(new FrameReader(300), [header])).toThrow(refused)
    const exact = encodeFrame(1, [new Uint8Array(300)])
    expect(read(new FrameReader(300), [exact])).toHaveLength(1)
    expect(() => read(new FrameReader(299), [exact])).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_PROTOCOL' }))
  })

  it('refuses a frame without a type', () => {
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_PROTOCOL' })
    expect(() => read(new FrameReader(300), [new Uint8Array(4)])).toThrow(refused)
  })

  it('obeys a limit that is changed between frames of one chunk', () => {
    const reader = new FrameReader(1)
    const chunk = Buffer.concat([encodeFrame(1, [new Uint8Array(1)]), encodeFrame(2, [new Uint8Array(100)])])
    const types: number[] = []
    reader.push(chunk, ({ type }) => {
      types.push(type)
      reader.limit = 100
    })
    expect(types).toEqual([1, 2])
  })
})
