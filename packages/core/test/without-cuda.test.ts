import { execFile, execFileSync } from 'node:child_process'
import { cp, mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import { packageFolder, runProgram } from './support.js'

const run = promisify(execFile)
const build = fileURLToPath(new URL('../../../tooling/native/build.mjs', import.meta.url))

let folder = ''
beforeAll(async () => void (folder = await mkdtemp(join(tmpdir(), 'moe-ep-core-'))))
afterAll(() => rm(folder, { recursive: true, force: true }))

const canBuild = requires('native build', () => {
  createRequire(build).resolve('node-addon-api/package.json')
  execFileSync('cmake', ['--version'])
  return true
})

test.skipIf(!canBuild)(
  'core is built without CUDA where that is wanted or nothing else possible, and says so',
  async () => {
    for (const part of ['dist', 'native', 'package.json']) {
      await cp(join(packageFolder, part), join(folder, part), { recursive: true })
    }
    await run(process.execPath, [build], {
      cwd: folder,
      env: { ...process.env, MOE_EP_CUDA_BUILD: 'OFF', CXXFLAGS: '-O0' },
      timeout: 110_000,
    })
    const output = await runProgram(
      `
    import { getDevice, listDevices, Tensor } from ${JSON.stringify(pathToFileURL(join(folder, 'dist/index.js')).href)}
    console.log(JSON.stringify(listDevices()))
    try {
      getDevice('cuda:0')
    } catch ({ code, message }) {
      console.log(code, message)
    }
    console.log(Tensor.from([1, 2], [2], 'bf16').toNumbers().join())
    `,
      { MOE_EP_DEVICE: 'cpu' },
    )
    const [devices, refusal, numbers] = output.trim().split('\n')
    const reason = expect.stringContaining('built without CUDA')
    expect(JSON.parse(devices!)).toEqual([
      { name: 'cpu', available: true },
      { name: 'cuda', available: false, reason },
    ])
    expect(refusal).toMatch(/^ERR_MOE_EP_NO_DEVICE cuda:0: .*built without CUDA/)
    expect(numbers).toBe('1,2')
  },
  120_000,
)
