import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'tsup'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'

const packageRoot = fileURLToPath(new URL('../../', import.meta.url))
let folder = ''

beforeAll(async () => {
  // Inside the package, so that the bundle still finds onnxruntime-node.
  folder = await mkdtemp(join(packageRoot, 'node_modules', 'worker-test-'))
  await build({
    config: false,
    entry: { fixture: fileURLToPath(new URL('worker-fixture.ts', import.meta.url)) },
    outDir: folder,
    outExtension: () => ({ js: '.mjs' }),
    format: ['esm'],
    target: 'node20',
    platform: 'node',
    noExternal: [/^@moe-ep\//],
    external: ['onnxruntime-node'],
    silent: true,
    esbuildOptions: (options) => void (options.conditions = ['@moe-ep/source']),
  })
})

afterAll(() => rm(folder, { recursive: true, force: true }))

describe('OnnxExpertEngine in worker threads', () => {
  it('serves 8 workers and then the main thread of one process, which ends by itself with code 0', async () => {
    // A process that does not end is killed at the deadline, and then execFile rejects.
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [join(folder, 'fixture.mjs')], {
      timeout: 50_000,
    })
    const errors = JSON.parse(stdout) as number[]
    expect(errors).toHaveLength(9)
    for (const error of errors) expect(error).toBeLessThan(1e-5)
    expect(stderr).toBe('')
  })
})
