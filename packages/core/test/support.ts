import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll } from 'vitest'
import { MoeEpError } from '../src/index.js'

/** Folder of the built package: what users install. */
export const packageFolder = fileURLToPath(new URL('../', import.meta.url))

/** What a promise rejects with, which must be an error of ours. */
export async function rejection(promise: Promise<unknown>): Promise<MoeEpError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  if (!MoeEpError.isInstance(error)) throw new Error(`expected a MoeEpError, got ${String(error)}`)
  return error
}

/** Runs a program as an ES module in a process of its own, and gives what it printed. @throws unless it ends by itself with 0. */
export async function runProgram(code: string, environment: Readonly<Record<string, string>> = {}): Promise<string> {
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', code], {
    env: { ...process.env, ...environment },
    timeout: 50_000,
    killSignal: 'SIGKILL',
  })
  return stdout
}

/** Copies of the built package, each as `<folder>/<name>`, for the tests of one file. */
export function useCopies(names: readonly string[], parts: readonly string[]): (name: string) => string {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'moe-ep-core-'))
    for (const name of names) {
      await mkdir(join(folder, name))
      for (const part of parts) await cp(join(packageFolder, part), join(folder, name, part), { recursive: true })
    }
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))
  return (name) => join(folder, name)
}
