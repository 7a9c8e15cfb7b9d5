import { type ErrorCode, MoeEpError, errorCodes } from '@moe-ep/core'

/** Why a group failed, in the form that travels to the other ranks. */
export interface FailureReport {
  readonly code: ErrorCode
  /** A sentence that makes sense on every rank: it names the rank it is about. */
  readonly message: string
  /** The rank at which the failure began; the lost rank when one was lost. */
  readonly origin: number
  readonly details: Readonly<Record<string, unknown>>
}

const maxMessageCharacters = 4_000
const maxDetailsCharacters = 8_000

/** Gives the error that `rank` raises for a report; on ranks other than the origin its cause names the origin. */
export function errorFromReport(report: FailureReport, rank: number): MoeEpError {
  const details = { ...report.details, rank, origin: report.origin }
  const message = `rank ${rank}: ${report.message}`
  if (report.origin === rank) return new MoeEpError(report.code, message, { details })
  const cause = new MoeEpError(report.code, report.message, { details: { ...report.details, rank: report.origin } })
  return new MoeEpError(report.code, message, { details, cause })
}

/** Gives the report of an error that began at `origin`. */
export function reportFromError(error: MoeEpError, origin: number): FailureReport {
  const message = `rank ${origin} failed the group: ${error.message}`
  return { code: error.code, message, origin, details: error.details }
}

/** Gives the bytes of a report; too long or unserialisable parts are cut, never refused. */
export function encodeReport(report: FailureReport): Buffer {
  const { code, origin } = report
  const message = report.message.slice(0, maxMessageCharacters)
  return Buffer.from(JSON.stringify({ code, message, origin, details: plainDetails(report.details) }))
}

/**
 * Gives the report that bytes from a peer spell.
 *
 * @throws ERR_MOE_EP_PROTOCOL when they are not a well-formed report
 */
export function decodeReport(bytes: Buffer): FailureReport {
  const value: unknown = parse(bytes)
  if (isRecord(value)) {
    const { code, message, origin, details } = value
    const known = typeof code === 'string' && Object.hasOwn(errorCodes, code)
    if (
      known &&
      typeof message === 'string' &&
      typeof origin === 'number' &&
      Number.isInteger(origin) &&
      isRecord(details)
    ) {
      return { code: code as ErrorCode, message: message.slice(0, maxMessageCharacters), origin, details }
    }
  }
  throw new MoeEpError('ERR_MOE_EP_PROTOCOL', 'a malformed failure report arrived')
}

function plainDetails(details: Readonly<Record<string, unknown>>): Record<string, unknown> {
  try {
    const text = JSON.stringify(details)
    if (text.length <= maxDetailsCharacters) return JSON.parse(text) as Record<string, unknown>
  } catch {
    // Details that cannot be written down (cycles, bigints) are only an extra: the code and the message still travel.
  }
  return {}
}

function parse(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
