import { spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'

const fixture = fileURLToPath(new URL('./fixture', import.meta.url))
const vitest = join(dirname(createRequire(import.meta.url).resolve('vitest/package.json')), 'vitest.mjs')

/** Runs vitest on one file of the fixture, as a run of its own. */
function runFixture(name: string, required = ''): Promise<{ exitCode: number | null; lines: string[] }> {
  const inherited = Object.entries(process.env).filter(([key]) => !/^(VITEST|TEST|MODE|NODE_ENV|MOE_EP_)/.test(key))
  const env = { ...Object.fromEntries(inherited), MOE_EP_REQUIRE: required, NO_COLOR: '1' }
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [vitest, 'run', name], {
      cwd: fixture,
      env,
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: 50_000,
    })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
    child.on('error', reject)
    child.on('close', (exitCode) => resolve({ exitCode, lines: output.trimEnd().split('\n') }))
  })
}

describe('the end of a test run', () => {
  it('lists what is missing with its reason, then the counts', async () => {
    const { exitCode, lines } = await runFixture('needs')
    expect(lines.slice(-3)).toEqual([
      'missing here: rain (the sky cannot be asked)',
      'missing here: unicorn (none in this forest)',
      '2 passed, 0 failed, 2 skipped',
    ])
    expect(exitCode).toBe(0)
  })

  it('counts a missing thing that MOE_EP_REQUIRE names as a failure, and still runs the other suites', async () => {
    const { exitCode, lines } = await runFixture('needs', 'soil, unicorn')
    expect(lines.at(-1)).toBe('2 passed, 1 failed, 2 skipped')
    expect(exitCode).toBe(1)
  })

  it.each(['broken-hook', 'broken-import'])('counts what fails outside of tests: %s', async (name) => {
    const { exitCode, lines } = await runFixture(name)
    expect(lines.at(-1)).toMatch(/^0 passed, 1 failed, [01] skipped$/)
    expect(exitCode).toBe(1)
  })

  it('does not call a run without any test a success', async () => {
    const { exitCode, lines } = await runFixture('no-such-file')
    expect(lines.at(-1)).toBe('0 passed, 1 failed, 0 skipped')
    expect(exitCode).toBe(1)
  })
})
