import type { Contribution, Link, LinkEvents } from './link.js'

/** The link of a world of one: every collective is complete at once and there is nobody to tell anything. */
export class SoloLink implements Link {
  #events: LinkEvents | undefined

  start(events: LinkEvents): void {
    this.#events = events
  }

  contribute({ sequence, bytes }: Contribution): void {
    this.#events?.done(sequence, [bytes])
  }

  expire(): void {}

  fail(): void {}

  leave(): Promise<void> {
    return Promise.resolve()
  }
}
