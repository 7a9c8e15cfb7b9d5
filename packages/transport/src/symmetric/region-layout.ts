import { argumentError, requireInteger } from '@moe-ep/core'

/** A named range of a symmetric payload. */
export interface Region {
  readonly byteOffset: number
  readonly byteLength: number
}

/**
 * Lays regions one after the other, the same on every rank because it depends on nothing but the calls. Size hints and
 * constructors share one such plan, so that they cannot disagree.
 */
export class RegionLayout {
  readonly #alignment: number
  #end = 0

  /** @param alignment of every region, a power of two. @default 128 */
  constructor(alignment = 128) {
    requireInteger('alignment', alignment, 1)
    if (!Number.isInteger(Math.log2(alignment))) throw argumentError('alignment', 'a power of two', alignment)
    this.#alignment = alignment
  }

  /** The next region of `byteLength` bytes. */
  reserve(byteLength: number): Region {
    requireInteger('byteLength', byteLength, 0)
    const byteOffset = this.#end
    this.#end = byteOffset + Math.ceil(byteLength / this.#alignment) * this.#alignment
    requireInteger('total bytes', this.#end, 0)
    return { byteOffset, byteLength }
  }

  /** Bytes of all regions so far. */
  get byteLength(): number {
    return this.#end
  }
}
