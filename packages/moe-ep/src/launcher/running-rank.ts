import type { RankResult } from './launch-result.js'

/** A rank that has been started, whatever it runs in. */
export interface RunningRank {
  readonly rank: number
  /** Resolves, never rejects, once the rank has ended and all its output is through. */
  readonly ended: Promise<RankResult>
  /** Passes a signal on; a thread is ended by any. */
  signal(signal: NodeJS.Signals): void
}
