import type { Device, Stream } from '@moe-ep/core'
import { type ProcessGroup, SymmetricMemory } from '@moe-ep/transport'

/**
 * A place where the streams of all ranks wait for one another. In each round a rank signals the one twice as far ahead as in the round
 * before and waits for the one as far behind: all leave at nearly the same time, whichever came last, which they would not if that one
 * told the others in turn.
 */
export class Meeting {
  readonly group: ProcessGroup
  readonly #memory: SymmetricMemory
  #meetings = 0

  private constructor(memory: SymmetricMemory) {
    this.group = memory.group
    this.#memory = memory
  }

  /** Collective. */
  static async create(group: ProcessGroup, device: Device): Promise<Meeting> {
    const numSignals = Math.ceil(Math.log2(group.worldSize))
    return new Meeting(await SymmetricMemory.create(group, { byteLength: 0, numSignals, device }))
  }

  /** Later work of the stream comes after all work that ranks enqueued before their own call. Collective, without a wait on the host. */
  enqueue(stream: Stream): void {
    const { rank, worldSize } = this.group
    const value = ++this.#meetings
    for (let index = 0; index < this.#memory.numSignals; index++) {
      this.#memory.signal({ peer: (rank + 2 ** index) % worldSize, index, value, stream })
      this.#memory.wait({ index, value, what: 'bench meeting', stream })
    }
  }

  close(): void {
    this.#memory.close()
  }
}
