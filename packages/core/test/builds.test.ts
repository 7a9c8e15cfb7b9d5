import { execFile, execFileSync } from 'node:child_process'
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, expect, test } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import { packageFolder, runProgram } from './support.js'

const run = promisify(execFile)
const build = fileURLToPath(new URL('../../../tooling/native/build.mjs', import.meta.url))

const canBuild = requires('native build', () => {
  createRequire(build).resolve('node-addon-api/package.json')
  execFileSync('cmake', ['--version'])
  return true
})
const canBuildCuda = requires('nvcc', () => {
  const architectures = execFileSync(process.env.CUDACXX ?? 'nvcc', ['--list-gpu-arch'], { encoding: 'utf8' })
  return architectures.includes('compute_100') || 'it is too old for compute_100'
})

const folders: string[] = []
afterAll(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true, force: true }))))

/** A copy of the package, built with these variables. */
async function built(environment: Readonly<Record<string, string>>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'moe-ep-core-'))
  folders.push(folder)
  for (const part of ['dist', 'native', 'package.json'])
    await cp(join(packageFolder, part), join(folder, part), { recursive: true })
  await run(process.execPath, [build], { cwd: folder, env: { ...process.env, ...environment }, timeout: 170_000 })
  return folder
}

/** The start of a program that uses such a copy. */
function importing(folder: string, names: string): string {
  return `import { ${names} } from ${JSON.stringify(pathToFileURL(join(folder, 'dist/index.js')).href)}`
}

test.skipIf(!canBuild)(
  'core is built without CUDA where that is wanted or nothing else possible, and says so',
  async () => {
    const folder = await built({ MOE_EP_CUDA_BUILD: 'OFF' })
    const output = await runProgram(
      `
    ${importing(folder, 'exportMemory, getCudaDeviceOfRank, getDevice, ipcHandle, listDevices, Tensor')}
    console.log(JSON.stringify(listDevices()))
    const cpu = getDevice('cpu')
    for (const ask of [
      () => getDevice('cuda:0'),
      () => getCudaDeviceOfRank({ localRank: 0, localWorldSize: 1 }),
      () => exportMemory(cpu.allocate(8)),
      () => ipcHandle(cpu.allocate(8)),
      () => cpu.defaultStream.cudaHandle,
    ]) {
      try {
        ask()
      } catch ({ code, message }) {
        console.log(code, message)
      }
    }
    console.log(Tensor.from([1, 2], [2], 'bf16').toNumbers().join())
    `,
      { MOE_EP_DEVICE: 'cpu' },
    )
    const [devices, ...rest] = output.trim().split('\n')
    const reason = expect.stringContaining('built without CUDA')
    expect(JSON.parse(devices!)).toEqual([
      { name: 'cpu', available: true },
      { name: 'cuda', available: false, reason },
    ])
    expect(rest).toEqual([
      expect.stringMatching(/^ERR_MOE_EP_NO_DEVICE cuda:0: .*built without CUDA/),
      expect.stringMatching(/^ERR_MOE_EP_NO_DEVICE cuda: .*built without CUDA/),
      ...Array<unknown>(3).fill(expect.stringMatching(/^ERR_MOE_EP_ARGUMENT .*a cuda device/)),
      '1,2',
    ])
  },
  180_000,
)

test.skipIf(!canBuild || !canBuildCuda)(
  'core is built for as many architectures as CUDAARCHS names',
  async () => {
    const folder = await built({ MOE_EP_CUDA_BUILD: 'ON', CUDAARCHS: '90a-real;100a-real' })
    const output = await runProgram(`${importing(folder, 'listDevices')}\nconsole.log(listDevices()[0].name)`)
    expect(output.trim()).toBe('cpu')
    const prebuilds = join(folder, 'prebuilds')
    const [addon] = (await readdir(prebuilds, { recursive: true })).filter((name) => name.endsWith('.node'))
    const code = await readFile(join(prebuilds, addon!), 'latin1')
    expect(new Set(code.match(/-arch sm_\w+/g))).toEqual(new Set(['-arch sm_90a', '-arch sm_100a']))
  },
  180_000,
)
