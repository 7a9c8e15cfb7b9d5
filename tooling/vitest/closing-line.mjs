/** Vitest reporter whose last word is one plain line that any CI can read: `N passed, N failed, N skipped`. */
export default class ClosingLine {
  onTestRunEnd(modules, unhandledErrors) {
    const count = { passed: 0, failed: 0, skipped: 0 }
    for (const module of modules) {
      const before = count.passed + count.failed + count.skipped
      for (const test of module.children.allTests()) {
        const { state } = test.result()
        count[state === 'pending' ? 'skipped' : state] += 1
      }
      // A file that could not even be collected holds no tests, yet it failed.
      if (!module.ok() && before === count.passed + count.failed + count.skipped) count.failed += 1
    }
    count.failed += unhandledErrors.length
    const line = `${count.passed} passed, ${count.failed} failed, ${count.skipped} skipped`
    process.once('exit', () => console.log(line))
  }
}
