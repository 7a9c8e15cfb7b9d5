import { constants } from 'node:buffer'
import { MoeEpError } from './error.js'

/** Where a range of a memory is seen. */
export interface MemoryRange {
  readonly buffer: ArrayBuffer
  /** Of the range in `buffer`. */
  readonly byteOffset: number
}

/** What makes an ArrayBuffer over a range, without a copy. */
export type MakeView = (byteOffset: number, byteLength: number) => ArrayBuffer

/**
 * The ArrayBuffers over one memory. One over all bytes serves every range, unless the memory is larger than an ArrayBuffer can be:
 * then each range has one of its own.
 */
export class MemoryViews {
  readonly #byteLength: number
  readonly #make: MakeView
  readonly #limit: number
  #whole: ArrayBuffer | undefined
  /** By `offset:length`. Weak, because a memory may outlive very many tensors that look into it. */
  readonly #ranges = new Map<string, WeakRef<ArrayBuffer>>()
  #sweepAt = 64

  constructor(byteLength: number, make: MakeView, limit: number = constants.MAX_LENGTH) {
    this.#byteLength = byteLength
    this.#make = make
    this.#limit = limit
  }

  /** @throws ERR_MOE_EP_UNSUPPORTED when the memory is larger than an ArrayBuffer can be. */
  get whole(): ArrayBuffer {
    if (this.#whole === undefined) {
      this.#requireWithinLimit(this.#byteLength)
      this.#whole = this.#make(0, this.#byteLength)
    }
    return this.#whole
  }

  /** @throws ERR_MOE_EP_UNSUPPORTED when the range is larger than an ArrayBuffer can be. */
  range(byteOffset: number, byteLength: number): MemoryRange {
    if (this.#byteLength <= this.#limit) return { buffer: this.whole, byteOffset }
    this.#requireWithinLimit(byteLength)
    const key = `${byteOffset}:${byteLength}`
    let buffer = this.#ranges.get(key)?.deref()
    if (buffer === undefined) {
      buffer = this.#make(byteOffset, byteLength)
      this.#ranges.set(key, new WeakRef(buffer))
      this.#sweep()
    }
    return { buffer, byteOffset: 0 }
  }

  /** All that are still reachable; they are forgotten here. */
  takeAll(): ArrayBuffer[] {
    const all = [this.#whole, ...[...this.#ranges.values()].map((reference) => reference.deref())]
    this.#whole = undefined
    this.#ranges.clear()
    return all.filter((buffer) => buffer !== undefined)
  }

  /** Drops references to what was collected, each time their number has doubled. */
  #sweep(): void {
    if (this.#ranges.size < this.#sweepAt) return
    for (const [key, reference] of this.#ranges) if (reference.deref() === undefined) this.#ranges.delete(key)
    this.#sweepAt = Math.max(64, 2 * this.#ranges.size)
  }

  #requireWithinLimit(byteLength: number): void {
    if (byteLength <= this.#limit) return
    throw new MoeEpError(
      'ERR_MOE_EP_UNSUPPORTED',
      `${byteLength} bytes cannot be seen as one ArrayBuffer, which holds up to ${this.#limit}; look at smaller tensors of this memory`,
    )
  }
}
