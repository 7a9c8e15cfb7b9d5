import { MoeEpError } from '@moe-ep/core'

/** One unit on the wire: a 32-bit big-endian length of what follows, one byte of type, the body. */
export interface Frame {
  readonly type: number
  readonly body: Buffer
}

const lengthBytes = 4

/** Gives the bytes of one frame; the parts of its body are copied, so that callers may reuse theirs. */
export function encodeFrame(type: number, parts: readonly Uint8Array[] = []): Buffer {
  const bodyBytes = parts.reduce((sum, part) => sum + part.length, 0)
  const frame = Buffer.allocUnsafe(lengthBytes + 1 + bodyBytes)
  frame.writeUInt32BE(1 + bodyBytes, 0)
  frame[lengthBytes] = type
  let offset = lengthBytes + 1
  for (const part of parts) {
    frame.set(part, offset)
    offset += part.length
  }
  return frame
}

/**
 * Cuts a byte stream, however it is split into chunks, into frames. A length over the limit is refused before it
 * costs memory.
 */
export class FrameReader {
  /** Largest accepted body in bytes; may be changed between frames. */
  limit: number
  #headerBytes = 0
  #length = 0
  #missing = 0
  #chunks: Uint8Array[] = []

  constructor(limit: number) {
    this.limit = limit
  }

  /**
   * Takes the next bytes of the stream and calls `deliver` for every frame that they complete.
   *
   * @throws ERR_MOE_EP_PROTOCOL for an empty frame or one over the limit; the stream cannot be read further
   */
  push(chunk: Uint8Array, deliver: (frame: Frame) => void): void {
    let offset = 0
    while (offset < chunk.length) {
      if (this.#missing === 0) {
        this.#length = this.#length * 256 + (chunk[offset++] as number)
        if (++this.#headerBytes === lengthBytes) this.#begin()
        continue
      }
      const part = chunk.subarray(offset, offset + this.#missing)
      this.#chunks.push(part)
      this.#missing -= part.length
      offset += part.length
      if (this.#missing === 0) deliver(this.#finish())
    }
  }

  #begin(): void {
    const length = this.#length
    this.#headerBytes = 0
    this.#length = 0
    if (length === 0) throw new MoeEpError('ERR_MOE_EP_PROTOCOL', 'a frame without a type arrived')
    if (length - 1 > this.limit) {
      throw new MoeEpError(
        'ERR_MOE_EP_PROTOCOL',
        `a frame of ${length - 1} bytes arrived; the limit is ${this.limit}`,
        {
          details: { frameBytes: length - 1, limit: this.limit },
        },
      )
    }
    this.#missing = length
  }

  #finish(): Frame {
    const bytes = Buffer.concat(this.#chunks)
    this.#chunks = []
    return { type: bytes[0] as number, body: bytes.subarray(1) }
  }
}
