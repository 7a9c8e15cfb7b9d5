import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const fixture = fileURLToPath(new URL('scarce-resources.fixture.mjs', import.meta.url))

/** Runs a scenario of the fixture, with at most so many kilobytes of addresses. @throws unless it ends by itself with 0. */
async function run(scenario: string, addressKilobytes: number | 'unlimited' = 'unlimited'): Promise<string> {
  const command = `ulimit -v ${addressKilobytes} && exec "$0" --expose-gc "$1" "$2"`
  const { stdout } = await promisify(execFile)('sh', ['-c', command, process.execPath, fixture, scenario], {
    timeout: 50_000,
    killSignal: 'SIGKILL',
  })
  return stdout
}

test('a stream whose threads cannot be started is an error, and the process works on', async () => {
  // Room for some of the threads, whose stacks take 8 megabytes each, and not for all of them.
  const limit = Number(await run('measure')) + 600_000
  expect(await run('threads', limit)).toBe('ERR_MOE_EP_OUT_OF_MEMORY true\n'.repeat(3) + 'works\n')
})

test('memory that nobody holds is collected in time, without being closed', async () => {
  expect(await run('garbage')).toBe('true\n')
})

test('streams that nobody holds finish their work and give their threads back', async () => {
  expect(await run('streams')).toBe('true\n')
})
