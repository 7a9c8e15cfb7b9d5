import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/**
 * Vitest reporter whose last word is one plain line that any CI can read: `N passed, N failed, N skipped`.
 * Above it stands what suites needed and did not find (requirements.ts).
 */
export default class ClosingLine {
  #counts = { passed: 0, failed: 0, skipped: 0 }
  #folder = ''

  onInit() {
    this.#folder = mkdtempSync(join(tmpdir(), 'moe-ep-vitest-'))
    // Workers inherit it: requirements.ts appends one JSON line for each thing that is missing.
    process.env.MOE_EP_MISSING_LOG = join(this.#folder, 'missing.jsonl')
    process.once('exit', (exitCode) => this.#close(exitCode))
  }

  onTestRunEnd(modules, unhandledErrors) {
    // Starts anew in watch mode, where one process ends many runs.
    this.#counts = { passed: 0, failed: unhandledErrors.length, skipped: 0 }
    for (const module of modules) this.#countModule(module)
  }

  #countModule(module) {
    const failedBefore = this.#counts.failed
    for (const test of module.children.allTests()) {
      const { state } = test.result()
      // A test that began and has no result (its worker died, say) did not pass.
      this.#counts[state === 'pending' ? 'failed' : state] += 1
    }
    // Errors of files and suites belong to no test: a broken import, a hook that throws.
    this.#counts.failed += module.errors().length
    for (const suite of module.children.allSuites()) this.#counts.failed += suite.errors().length
    if (!module.ok() && this.#counts.failed === failedBefore) this.#counts.failed += 1
  }

  #close(exitCode) {
    for (const { name, reason } of this.#missing()) console.log(`missing here: ${name} (${reason})`)
    rmSync(this.#folder, { recursive: true, force: true })

    const { passed, failed, skipped } = this.#counts
    // Vitest fails for reasons that are no test's: no files, a type error outside tests, a coverage threshold.
    const shownFailed = exitCode !== 0 && failed === 0 ? 1 : failed
    console.log(`${passed} passed, ${shownFailed} failed, ${skipped} skipped`)
  }

  /** Each missing thing once for each reason, though every file that needs it has reported it. */
  #missing() {
    const log = join(this.#folder, 'missing.jsonl')
    if (!existsSync(log)) return []
    const lines = new Set(readFileSync(log, 'utf8').split('\n').filter(Boolean))
    return [...lines].sort().map((line) => JSON.parse(line))
  }
}
