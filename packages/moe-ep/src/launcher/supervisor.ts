import type { LaunchResult, RankResult } from './launch-result.js'
import type { RunningRank } from './running-rank.js'

/** How long ranks that were asked to end (SIGTERM) may take before they are killed. */
const killAfterMs = 2_000

const forwardedSignals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP']

/** What a supervised run obeys. */
export interface SupervisorOptions {
  readonly graceMs: number
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
}

/** Watches over the ranks of one run: when one fails, or somebody stops the run, none of the others stays. */
export class Supervisor {
  readonly #running = new Map<number, RunningRank>()
  readonly #options: SupervisorOptions
  readonly #timers = new Set<NodeJS.Timeout>()
  #firstFailure: RankResult | undefined
  #stoppedBy: LaunchResult['stoppedBy']
  #stopping = false

  constructor(ranks: readonly RunningRank[], options: SupervisorOptions) {
    for (const rank of ranks) this.#running.set(rank.rank, rank)
    this.#options = options
  }

  /** Resolves once every rank has ended. */
  async run(): Promise<LaunchResult> {
    const { timeoutMs, signal } = this.#options
    const forward = (received: NodeJS.Signals) => this.#stop(received)
    const abort = () => this.#stop('abort')
    for (const name of forwardedSignals) process.on(name, forward)
    if (timeoutMs > 0) this.#after(timeoutMs, () => this.#stop('timeout'))
    signal?.addEventListener('abort', abort, { once: true })
    if (signal?.aborted) abort()
    try {
      const ranks = await Promise.all([...this.#running.values()].map((rank) => this.#follow(rank)))
      return this.#result(ranks)
    } finally {
      for (const name of forwardedSignals) process.off(name, forward)
      for (const timer of this.#timers) clearTimeout(timer)
      signal?.removeEventListener('abort', abort)
    }
  }

  async #follow(rank: RunningRank): Promise<RankResult> {
    const result = await rank.ended
    this.#running.delete(rank.rank)
    if (result.exitCode !== 0 && !this.#stopping) {
      this.#firstFailure = result
      this.#stopping = true
      // The others normally notice through their group and end with an error that says more than a signal would.
      this.#after(this.#options.graceMs, () => this.#end())
    }
    return result
  }

  /** Stops a healthy run from outside: there is nothing for the ranks to find out by themselves. */
  #stop(by: NonNullable<LaunchResult['stoppedBy']>): void {
    if (this.#stoppedBy) {
      // Whoever asks a second time does not want to wait.
      if (by !== 'timeout') this.#signalAll('SIGKILL')
      return
    }
    this.#stoppedBy = by
    this.#stopping = true
    if (by === 'timeout' || by === 'abort') return this.#end()
    this.#signalAll(by)
    this.#after(this.#options.graceMs, () => this.#end())
  }

  #end(): void {
    this.#signalAll('SIGTERM')
    this.#after(killAfterMs, () => this.#signalAll('SIGKILL'))
  }

  #signalAll(signal: NodeJS.Signals): void {
    for (const rank of this.#running.values()) rank.signal(signal)
  }

  #after(ms: number, action: () => void): void {
    this.#timers.add(setTimeout(action, ms))
  }

  #result(ranks: readonly RankResult[]): LaunchResult {
    const ok = !this.#stoppedBy && ranks.every(({ exitCode }) => exitCode === 0)
    return {
      ranks,
      ok,
      ...(this.#firstFailure ? { firstFailure: this.#firstFailure } : {}),
      ...(this.#stoppedBy ? { stoppedBy: this.#stoppedBy } : {}),
    }
  }
}
