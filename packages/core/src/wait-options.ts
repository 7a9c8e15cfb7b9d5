import { argumentError, MoeEpError } from './error.js'

/** How long a caller is willing to wait. */
export interface WaitOptions {
  /** Milliseconds, 0 or more; 0 or absent: no limit of its own. More than 24 days count as 24. */
  readonly timeoutMs?: number
  readonly signal?: AbortSignal
}

/** What a timer of Node.js can hold; it fires at once for more. */
const longestTimeoutMs = 2 ** 31 - 1

/**
 * Checks options before a wait is begun.
 * @throws ERR_MOE_EP_ARGUMENT when `timeoutMs` is no number, NaN or negative.
 */
export function requireWaitOptions({ timeoutMs = 0 }: WaitOptions): void {
  if (typeof timeoutMs !== 'number' || !(timeoutMs >= 0))
    throw argumentError('timeoutMs', 'milliseconds, 0 or more', timeoutMs)
}

/**
 * `promise`, given up early when the signal fires or the time is over. The work behind it goes on.
 * @throws ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_ABORTED; ERR_MOE_EP_ARGUMENT for bad options.
 */
export async function withWaitOptions<T>(promise: Promise<T>, what: string, options: WaitOptions): Promise<T> {
  const { timeoutMs = 0, signal } = options
  try {
    requireWaitOptions(options)
  } catch (error) {
    promise.catch(() => {})
    throw error
  }
  if (timeoutMs === 0 && signal === undefined) return promise
  let timer: NodeJS.Timeout | undefined
  let onAbort: (() => void) | undefined
  const givenUp = new Promise<never>((_, reject) => {
    const aborted = (): void =>
      reject(new MoeEpError('ERR_MOE_EP_ABORTED', `${what} was aborted`, { cause: signal?.reason }))
    if (signal?.aborted === true) return aborted()
    if (timeoutMs > 0) {
      const limitMs = Math.min(timeoutMs, longestTimeoutMs)
      timer = setTimeout(
        () => reject(new MoeEpError('ERR_MOE_EP_TIMEOUT', `${what}: not done after ${limitMs} ms`)),
        limitMs,
      )
    }
    onAbort = aborted
    signal?.addEventListener('abort', aborted, { once: true })
  })
  // When the caller has given up nobody else would hear of the work's own failure: that is what giving up means.
  promise.catch(() => {})
  try {
    return await Promise.race([promise, givenUp])
  } finally {
    clearTimeout(timer)
    if (onAbort !== undefined) signal?.removeEventListener('abort', onAbort)
  }
}
