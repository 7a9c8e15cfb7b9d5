import { type ErrorCode, errorCodes } from './error-codes.js'

/** Marks instances across module copies (ESM and CJS builds each have a class of their own). */
const marker = Symbol.for('moe-ep.error')

/** What an error carries beside its message. */
export interface MoeEpErrorOptions extends ErrorOptions {
  /** Machine-readable facts, such as `{ argument: 'topkIdx', rank: 3 }`. */
  readonly details?: Readonly<Record<string, unknown>>
}

/** The one error class of all moe-ep packages: `code` is stable and documented in docs/errors.md. */
export class MoeEpError extends Error {
  override readonly name = 'MoeEpError'
  readonly code: ErrorCode
  readonly details: Readonly<Record<string, unknown>>

  constructor(code: ErrorCode, message: string, options: MoeEpErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.details = options.details ?? {}
    Object.defineProperty(this, marker, { value: true })
  }

  /** Whether `value` is a MoeEpError of any copy of this package, optionally with this very code. */
  static isInstance(value: unknown, code?: ErrorCode): value is MoeEpError {
    return (
      value instanceof Error && marker in value && (code === undefined || (value as { code?: unknown }).code === code)
    )
  }

  /** Turns anything thrown (a native error with a `code` of ours, an AbortSignal's reason, ...) into a MoeEpError. */
  static from(value: unknown, fallback: ErrorCode = 'ERR_MOE_EP_INTERNAL'): MoeEpError {
    if (MoeEpError.isInstance(value)) return value
    if (!(value instanceof Error)) return new MoeEpError(fallback, String(value), { cause: value })
    const code = (value as { code?: unknown }).code
    const known = typeof code === 'string' && Object.hasOwn(errorCodes, code)
    return new MoeEpError(known ? (code as ErrorCode) : fallback, value.message, { cause: value.cause ?? value })
  }

  toJSON(): { name: string; code: ErrorCode; message: string; details: Readonly<Record<string, unknown>> } {
    return { name: this.name, code: this.code, message: this.message, details: this.details }
  }
}

/** Error for a bad argument: says which one, what was expected and what came. */
export function argumentError(argument: string, expected: string, received: unknown): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_ARGUMENT', `${argument}: expected ${expected}, received ${describe(received)}`, {
    details: { argument },
  })
}

function describe(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'bigint') return `${value}n`
  if (Array.isArray(value)) return `[${value.slice(0, 16).map(describe).join(', ')}${value.length > 16 ? ', ...' : ''}]`
  if (typeof value === 'object' && value !== null) return value.constructor?.name ?? 'object'
  return String(value)
}
