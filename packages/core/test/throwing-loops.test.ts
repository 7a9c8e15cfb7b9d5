import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'

const run = promisify(execFile)
const native = fileURLToPath(new URL('../native', import.meta.url))
const program = fileURLToPath(new URL('native/throwing_loops.cc', import.meta.url))
const tools = createRequire(new URL('../../../tooling/native/package.json', import.meta.url))

let folder = ''
beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), 'moe-ep-core-'))))
afterAll(() => rm(folder, { recursive: true, force: true }))

test('what any part of a loop throws fails the stream, the earliest part first, and ends nothing else', async () => {
  const headers = join(dirname(tools.resolve('node-api-headers/package.json')), 'include')
  const includes = [native, join(native, 'include'), headers].flatMap((path) => ['-I', path])
  const sources = ['cpu', 'runtime'].flatMap((part) =>
    readdirSync(join(native, part)).map((name) => join(native, part, name)),
  )
  const binary = join(folder, 'throwing_loops')
  const inputs = [program, ...sources.filter((name) => name.endsWith('.cc'))]
  await run('c++', ['-std=c++20', '-O0', '-pthread', ...includes, ...inputs, '-o', binary], { timeout: 50_000 })
  const { stdout } = await run(binary, [], { timeout: 10_000, killSignal: 'SIGKILL' })
  const round = [
    'ERR_MOE_EP_INTERNAL part 1',
    'ERR_MOE_EP_OUT_OF_MEMORY an operation ran out of memory',
    'ERR_MOE_EP_INTERNAL an operation threw something that is no std::exception',
    'no failure',
  ]
  expect(stdout.trim().split('\n')).toEqual(Array.from({ length: 50 }, () => round).flat())
})
