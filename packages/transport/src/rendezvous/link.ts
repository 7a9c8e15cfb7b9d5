import type { FailureReport } from './failure-report.js'
import type { CollectiveKind } from './messages.js'

/** One rank's part in one collective. */
export interface Contribution {
  /** 1 for the first collective of the group, 2 for the next, ...: what matches the ranks' calls. */
  readonly sequence: number
  readonly kind: CollectiveKind
  readonly label: string
  readonly bytes: Uint8Array
}

/** What a link tells its group. */
export interface LinkEvents {
  /** Every rank contributed; `parts` holds the bytes of every rank (nothing after a barrier). */
  done(sequence: number, parts: readonly Uint8Array[]): void
  /** The group can do nothing more; all ranks that can be reached know. */
  failed(report: FailureReport): void
}

/**
 * How a group reaches the other ranks: as the hub of the star, as one of its spokes, or not at all in a world of
 * one.
 */
export interface Link {
  start(events: LinkEvents): void
  contribute(contribution: Contribution): void
  /** This rank's deadline for a collective has passed: finds out who was missing, then fails the group. */
  expire(sequence: number, timeoutMs: number): void
  /** Tells all ranks that the group failed here, and lets go of them. `failed` is not called. */
  fail(report: FailureReport): void
  /** Says goodbye and closes all connections, within `timeoutMs`. */
  leave(timeoutMs: number, signal: AbortSignal | undefined): Promise<void>
}

/** Names a collective in messages. */
export function describeCollective(call: { kind: CollectiveKind; label: string; sequence: number }): string {
  return `${call.kind} #${call.sequence}${call.label ? ` (${call.label})` : ''}`
}

/** The report of a collective, or of the rendezvous, that one rank gave up waiting for. */
export function timeoutReport(wait: {
  operation: string
  rank: number
  timeoutMs: number
  missing: readonly number[]
}): FailureReport {
  const { operation, rank, timeoutMs, missing } = wait
  return {
    code: 'ERR_MOE_EP_TIMEOUT',
    message: `${operation} timed out on rank ${rank} after ${timeoutMs} ms; ${sayMissing(missing)}`,
    origin: rank,
    details: { operation, timeoutMs, missing },
  }
}

/** The report of a rank whose connection went away, or that broke the protocol (`cause` then says how). */
export function lostReport(rank: number, cause: Error | undefined): FailureReport {
  const broken = (cause as { code?: unknown } | undefined)?.code === 'ERR_MOE_EP_PROTOCOL'
  if (broken) return protocolReport(rank, `rank ${rank} broke the protocol: ${cause?.message}`)
  const how = cause ? `its connection broke (${cause.message})` : 'its connection closed without goodbye'
  return {
    code: 'ERR_MOE_EP_PEER_LOST',
    message: `rank ${rank} was lost: ${how}`,
    origin: rank,
    details: { lost: rank },
  }
}

/** The report of something that the protocol does not allow. */
export function protocolReport(origin: number, message: string): FailureReport {
  return { code: 'ERR_MOE_EP_PROTOCOL', message, origin, details: {} }
}

/** The report of a collective that can never complete because a rank has closed its group. */
export function leftReport(operation: string, rank: number): FailureReport {
  const message = `${operation} cannot complete: rank ${rank} closed the group`
  return { code: 'ERR_MOE_EP_ABORTED', message, origin: rank, details: { operation, closed: rank } }
}

function sayMissing(missing: readonly number[]): string {
  if (missing.length === 0) return 'no rank was missing'
  const shown = missing.slice(0, 64).join(', ')
  return `missing ${missing.length === 1 ? 'rank' : 'ranks'}: ${shown}${missing.length > 64 ? ', ...' : ''}`
}
