import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const fixture = fileURLToPath(new URL('worker-churn.fixture.mjs', import.meta.url))

test('workers that are terminated between native calls and their errors do not end the process', async () => {
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [fixture], {
    timeout: 50_000,
    killSignal: 'SIGKILL',
  })
  expect({ stdout, stderr }).toEqual({ stdout: 'terminated 40 workers\n', stderr: '' })
})
