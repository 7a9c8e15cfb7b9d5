import { readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

interface Bundler {
  build(options: Record<string, unknown>): Promise<unknown>
}

/** Sources as one JavaScript module that plain Node can run. */
export interface Bundle {
  readonly path: string
  remove(): Promise<void>
}

/** Bundles a source file, given relative to this folder, into the package's own cache folder. */
export async function bundle(source: string): Promise<Bundle> {
  const require = createRequire(import.meta.url)
  const { build } = createRequire(require.resolve('tsup'))('esbuild') as Bundler
  // Inside the package, so that the bundle finds the package by its own name.
  const cache = fileURLToPath(new URL('../../node_modules/.cache/', import.meta.url))
  await mkdir(cache, { recursive: true })
  const folder = await mkdtemp(join(cache, 'launcher-test-'))
  const path = join(folder, 'bundle.mjs')
  await build({
    entryPoints: [fileURLToPath(new URL(source, import.meta.url))],
    ...{ outfile: path, bundle: true, platform: 'node', format: 'esm', target: 'node20', logLevel: 'error' },
    conditions: ['@moe-ep/source'],
    external: ['*.node'],
  })
  return { path, remove: () => rm(folder, { recursive: true, force: true }) }
}

/** Resolves once none of these processes runs any more; one that has ended but was not reaped yet does not run. */
export async function checkGone(pids: readonly number[]): Promise<void> {
  const runs = (pid: number) => {
    try {
      return !/^\d+ \(.*\) [ZX]/s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
    } catch {
      return false
    }
  }
  while (pids.some(runs)) await new Promise((resolve) => setTimeout(resolve, 20))
}
