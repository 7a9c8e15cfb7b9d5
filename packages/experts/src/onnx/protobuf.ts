const utf8 = new TextEncoder()

/** Writes the protobuf wire format: the few field kinds that an ONNX model needs. */
export class ProtobufWriter {
  readonly #bytes: number[] = []

  /** An int32, int64, bool or enum field. `value` is a non-negative safe integer. */
  integer(field: number, value: number): this {
    this.#varint(field * 8)
    this.#varint(value)
    return this
  }

  /** A string field. */
  text(field: number, value: string): this {
    return this.#block(field, utf8.encode(value))
  }

  /** A nested message field. */
  message(field: number, value: ProtobufWriter): this {
    return this.#block(field, value.finish())
  }

  /** The encoded message. */
  finish(): Uint8Array {
    return Uint8Array.from(this.#bytes)
  }

  #block(field: number, content: Uint8Array): this {
    this.#varint(field * 8 + 2)
    this.#varint(content.length)
    for (const byte of content) this.#bytes.push(byte)
    return this
  }

  /** Seven bits a byte, lowest first. Division, not shifts: values may exceed 32 bits. */
  #varint(value: number): void {
    let rest = value
    while (rest > 127) {
      this.#bytes.push((rest % 128) + 128)
      rest = Math.floor(rest / 128)
    }
    this.#bytes.push(rest)
  }
}
