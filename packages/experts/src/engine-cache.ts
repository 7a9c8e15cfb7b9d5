import type { ExpertEngine, ExpertEngineFactory } from './expert-engine.js'
import type { ExpertSizes } from './expert-sizes.js'
import { MoeEpError } from '@moe-ep/core'

/** One engine for each pair of sizes, made at first use. */
export class EngineCache {
  readonly #create: ExpertEngineFactory
  readonly #engines = new Map<string, Promise<ExpertEngine>>()
  #closed = false

  constructor(create: ExpertEngineFactory) {
    this.#create = create
  }

  /** @throws ERR_MOE_EP_RELEASED after close. */
  requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the experts were closed')
  }

  engineFor({ hidden, intermediate }: ExpertSizes): Promise<ExpertEngine> {
    const key = `${hidden}x${intermediate}`
    let engine = this.#engines.get(key)
    if (engine === undefined) {
      engine = this.#create({ hidden, intermediate })
      this.#engines.set(key, engine)
      // A failed start is not remembered: what was missing may be there next time.
      engine.catch(() => this.#engines.delete(key))
    }
    return engine
  }

  async close(): Promise<void> {
    this.#closed = true
    const engines = await Promise.allSettled(this.#engines.values())
    this.#engines.clear()
    for (const engine of engines) if (engine.status === 'fulfilled') await engine.value.close()
  }
}
