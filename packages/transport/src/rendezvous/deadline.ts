/**
 * Calls `expire` once `timeoutMs` have passed, unless the returned function is called first. Input that is already
 * waiting in a socket is read before `expire` runs: a JavaScript thread that was busy for long must not time out
 * what has arrived.
 */
export function startDeadline(timeoutMs: number, expire: () => void): () => void {
  let immediate: NodeJS.Immediate | undefined
  const timer = setTimeout(() => {
    immediate = setImmediate(expire)
  }, timeoutMs)
  return () => {
    clearTimeout(timer)
    if (immediate) clearImmediate(immediate)
  }
}

/** Calls `listener` when `signal` aborts, at once if it already has; the returned function stops listening. */
export function onAbort(signal: AbortSignal | undefined, listener: (reason: unknown) => void): () => void {
  if (!signal) return () => {}
  if (signal.aborted) {
    listener(signal.reason)
    return () => {}
  }
  const forward = () => listener(signal.reason)
  signal.addEventListener('abort', forward, { once: true })
  return () => signal.removeEventListener('abort', forward)
}
