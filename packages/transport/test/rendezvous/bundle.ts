import { mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

interface Bundler {
  build(options: Record<string, unknown>): Promise<unknown>
}

/** The sources of the rendezvous as one JavaScript module that plain Node processes can import. */
export interface Bundle {
  readonly url: string
  remove(): Promise<void>
}

/** Builds the bundle with the bundler that tsup brings along. */
export async function bundleRendezvous(): Promise<Bundle> {
  const require = createRequire(import.meta.url)
  const { build } = createRequire(require.resolve('tsup'))('esbuild') as Bundler
  const folder = await mkdtemp(join(tmpdir(), 'moe-ep-rendezvous-'))
  const outfile = join(folder, 'rendezvous.mjs')
  await build({
    entryPoints: [fileURLToPath(new URL('../../src/rendezvous/index.ts', import.meta.url))],
    ...{ outfile, bundle: true, platform: 'node', format: 'esm', target: 'node20', logLevel: 'error' },
    conditions: ['@moe-ep/source'],
    // Sources of native loading are written for ESM and use createRequire; nothing here calls them.
    external: ['*.node'],
  })
  return { url: pathToFileURL(outfile).href, remove: () => rm(folder, { recursive: true, force: true }) }
}
