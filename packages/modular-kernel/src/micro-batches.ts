import { MoeEpError, requireInteger } from '@moe-ep/core'

/** What a micro-batch can ask while it runs. */
export interface MicroBatchTurn {
  readonly microBatch: number
  /** Lets the next one go on, and resolves when it is this one's turn again. @throws ERR_MOE_EP_ABORTED when another one failed. */
  pass(): Promise<void>
}

/** Who may run: one that has ended is left out. */
interface Seat {
  ended: boolean
  wake: (() => void) | undefined
}

/**
 * Runs micro-batches as coroutines of which one goes on at a time, in ring order: 0, 1, ..., 0, 1, ... Who is next depends on nothing but
 * the calls of `pass`, so all ranks start their collectives in the same order, whatever their timing.
 */
export class MicroBatches {
  readonly #seats: readonly Seat[]
  #failure: MoeEpError | undefined
  #running = false

  /** @throws ERR_MOE_EP_ARGUMENT. @param count micro-batches, 1 or more */
  constructor(count: number) {
    requireInteger('count', count, 1)
    this.#seats = Array.from({ length: count }, () => ({ ended: true, wake: undefined }))
  }

  /**
   * The results of `body`, called once for each micro-batch, in order. Resolves when all have ended.
   *
   * @throws what the first one failed with; the others are told at their next `pass`. ERR_MOE_EP_ARGUMENT while another run is going on.
   */
  async run<Result>(body: (turn: MicroBatchTurn) => Promise<Result>): Promise<Result[]> {
    if (this.#running) throw new MoeEpError('ERR_MOE_EP_ARGUMENT', 'run: these micro-batches are running already')
    this.#running = true
    this.#failure = undefined
    for (const seat of this.#seats) seat.ended = false
    try {
      const running = this.#seats.map((_, microBatch) => this.#runOne(microBatch, body))
      // All of them wait by now, so that none misses its first turn.
      this.#wakeNext(this.#seats.length - 1)
      const results = await Promise.allSettled(running)
      if (this.#failure !== undefined) throw this.#failure
      return results.map((result) => (result as PromiseFulfilledResult<Result>).value)
    } finally {
      this.#running = false
    }
  }

  async #runOne<Result>(microBatch: number, body: (turn: MicroBatchTurn) => Promise<Result>): Promise<Result> {
    const seat = this.#seats[microBatch]!
    const waiting = (): Promise<void> => new Promise((resolve) => (seat.wake = resolve))
    await waiting()
    try {
      this.#requireHealth()
      return await body({
        microBatch,
        pass: async () => {
          if (this.#next(microBatch) !== microBatch) {
            const turn = waiting()
            this.#wakeNext(microBatch)
            await turn
          }
          this.#requireHealth()
        },
      })
    } catch (error) {
      this.#failure ??= MoeEpError.from(error)
      throw error
    } finally {
      seat.ended = true
      // A baton that is dropped would leave the others waiting for ever.
      this.#wakeNext(microBatch)
    }
  }

  #requireHealth(): void {
    if (this.#failure === undefined) return
    throw new MoeEpError('ERR_MOE_EP_ABORTED', 'another micro-batch failed', { cause: this.#failure })
  }

  /** The next seat in the ring that has not ended; its own when it is alone. */
  #next(microBatch: number): number {
    const count = this.#seats.length
    for (let step = 1; step < count; step++) {
      const next = (microBatch + step) % count
      if (!this.#seats[next]!.ended) return next
    }
    return microBatch
  }

  #wakeNext(microBatch: number): void {
    const seat = this.#seats[this.#next(microBatch)]!
    const { wake } = seat
    seat.wake = undefined
    wake?.()
  }
}
