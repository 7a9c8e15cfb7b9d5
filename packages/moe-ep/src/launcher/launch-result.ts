import { MoeEpError } from '@moe-ep/core'

/** How one rank ended. */
export interface RankResult {
  readonly rank: number
  /** Exit code, or `null` when a signal ended it or it never started. */
  readonly exitCode: number | null
  /** The signal that ended it, or `null`. Always `null` for threads. */
  readonly signal: NodeJS.Signals | null
  /** Why it could not be started, or the exception that ended a thread. */
  readonly error?: Error
  /** The last MiB of what it wrote, with `output: 'pipe'`. */
  readonly stdout?: string
  /** The last MiB of its error stream, with `output: 'pipe'`. */
  readonly stderr?: string
}

/** How a run ended. */
export interface LaunchResult {
  /** Every rank, in order. */
  readonly ranks: readonly RankResult[]
  /** Whether every rank ended with exit code 0 and nobody stopped the run. */
  readonly ok: boolean
  /**
   * The rank whose failure the launcher saw first, before the others were stopped. Ranks of a group hear of one another through their
   * connections, so of failures a few milliseconds apart it need not be the cause: `ranks` has them all.
   */
  readonly firstFailure?: RankResult
  /** Who stopped the run from outside: its deadline, its AbortSignal, or a signal that this process received. */
  readonly stoppedBy?: 'timeout' | 'abort' | NodeJS.Signals
}

/**
 * Gives back a result that is ok.
 *
 * @throws ERR_MOE_EP_LAUNCH naming the rank that failed first and how; ERR_MOE_EP_TIMEOUT or ERR_MOE_EP_ABORTED
 *   when the run was stopped by its deadline, its AbortSignal or a signal
 */
export function assertLaunched(result: LaunchResult): LaunchResult {
  if (result.ok) return result
  const { firstFailure, stoppedBy } = result
  const details = { ranks: result.ranks.map(({ rank, exitCode, signal }) => ({ rank, exitCode, signal })) }
  if (firstFailure) {
    const message = describeFailure(firstFailure)
    throw new MoeEpError('ERR_MOE_EP_LAUNCH', message, {
      details: { ...details, rank: firstFailure.rank },
      cause: firstFailure.error,
    })
  }
  if (stoppedBy === 'timeout')
    throw new MoeEpError('ERR_MOE_EP_TIMEOUT', 'the ranks did not end before the deadline', { details })
  throw new MoeEpError('ERR_MOE_EP_ABORTED', `the ranks were stopped by ${stoppedBy ?? 'somebody'}`, { details })
}

/** Says in one line how a rank ended. */
export function describeFailure({ rank, exitCode, signal, error }: RankResult): string {
  if (signal) return `rank ${rank} was ended by ${signal}`
  if (exitCode === null) return `rank ${rank} could not be started: ${error?.message ?? 'unknown reason'}`
  return `rank ${rank} ended with exit code ${exitCode}${error ? `: ${error.message}` : ''}`
}
