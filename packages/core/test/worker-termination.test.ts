import { fileURLToPath } from 'node:url'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'

const fixture = fileURLToPath(new URL('worker-termination.fixture.mjs', import.meta.url))

/** Runs one scenario of the fixture. @throws when the process crashes, hangs or ends with another code than 0. */
async function run(scenario: string): Promise<{ stdout: string; stderr: string }> {
  return promisify(execFile)(process.execPath, [fixture, scenario], { timeout: 50_000, killSignal: 'SIGKILL' })
}

describe('a process whose streams have hours of work before them', () => {
  test('loses worker threads in mid operation, one after another and many at a time, and works on', async () => {
    expect(await run('terminate')).toEqual({ stdout: 'terminated 24 workers\nmain works: 1,2\n', stderr: '' })
  })

  test('has workers that leave by themselves with work queued and promises pending', async () => {
    expect(await run('leave')).toEqual({ stdout: 'exit codes 0,7\nmain works: 1,2\n', stderr: '' })
  })

  test('can exit itself at once', async () => {
    expect(await run('exit')).toEqual({ stdout: 'leaving\n', stderr: '' })
  })
})
