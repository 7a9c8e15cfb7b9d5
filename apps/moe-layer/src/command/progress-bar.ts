import type { OnProgress } from '../support/progress.js'

/** A bar on standard error for a person at a terminal; nothing for a program. */
export function progressBar(what: string, quiet: boolean): OnProgress {
  if (quiet || !process.stderr.isTTY) return () => {}
  return ({ done, total }) => {
    const part = total === 0 ? 1 : done / total
    const bar = '#'.repeat(Math.round(part * 30)).padEnd(30, '.')
    process.stderr.write(`\r${what} [${bar}] ${Math.round(part * 100)}%${part >= 1 ? '\n' : ''}`)
  }
}
