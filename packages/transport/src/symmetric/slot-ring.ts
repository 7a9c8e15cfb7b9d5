import { type Event, MoeEpError, requireInteger } from '@moe-ep/core'

/**
 * One numbered slot of an arena, held from a dispatch until its combine or `release()`. The rows in it may be overwritten as soon
 * as the lease has ended and later work on the stream wants the slot.
 */
export interface Lease {
  /** Place in the arena, in [0, maxInFlight). */
  readonly slot: number
  /** Grows by one with every lease of the ring: tells two uses of a slot apart. */
  readonly id: number
  readonly active: boolean
  /** Where the slot's last user had finished with it; whoever fills the slot again waits for it first. */
  readonly previous: Event | undefined
  /** The slot is in use until this event, if nobody says otherwise when the lease ends. */
  useUntil(event: Event): void
  /**
   * Ends the lease, after an event of the stream that used it last, or what was said by `useUntil`. Does nothing when it has ended
   * already.
   */
  release(after?: Event): void
}

/**
 * Hands out slots in program order, lowest number first. All ranks run the same program, so all hand out the same slots and all
 * see the same error when there is none: nothing here talks to peers.
 */
export class SlotRing {
  readonly maxInFlight: number
  readonly #free: boolean[]
  readonly #lastUse: (Event | undefined)[] = []
  #next = 0

  constructor(maxInFlight: number) {
    requireInteger('maxInFlight', maxInFlight, 1, 64)
    this.maxInFlight = maxInFlight
    this.#free = Array.from({ length: maxInFlight }, () => true)
  }

  /** Slots that are not leased. */
  get free(): number {
    return this.#free.filter(Boolean).length
  }

  /**
   * The lowest free slot, or the one that is asked for.
   * @throws ERR_MOE_EP_NO_FREE_SLOT, on every rank alike, before anything is sent; ERR_MOE_EP_ARGUMENT.
   */
  acquire(wanted?: number): Lease {
    if (wanted !== undefined) requireInteger('slot', wanted, 0, this.maxInFlight - 1)
    const slot = wanted ?? this.#free.indexOf(true)
    if (slot === -1 || !this.#free[slot]) {
      throw new MoeEpError(
        'ERR_MOE_EP_NO_FREE_SLOT',
        slot === -1
          ? `all ${this.maxInFlight} slots are in flight: combine or release a lease first, or build with a larger maxInFlight`
          : `slot ${slot} is in flight`,
      )
    }
    this.#free[slot] = false
    const free = this.#free
    const lastUse = this.#lastUse
    let active = true
    let used: Event | undefined
    return {
      slot,
      id: this.#next++,
      get active() {
        return active
      },
      previous: lastUse[slot],
      useUntil(event) {
        used = event
      },
      release(after = used) {
        if (!active) return
        active = false
        free[slot] = true
        lastUse[slot] = after ?? lastUse[slot]
      },
    }
  }
}
