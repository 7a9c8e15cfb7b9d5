#!/usr/bin/env node
// Builds the addon of the package in the current folder: native/CMakeLists.txt -> prebuilds/<platform>-<arch>/<name>.node.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const packageFolder = process.cwd()
const toolFolder = dirname(fileURLToPath(import.meta.url))
const require = createRequire(import.meta.url)
const buildFolder = join('node_modules', '.cache', 'native')

/** Folders of headers that the package's workspace dependencies offer to its native code: headers alone are needed at build time only. */
function includeFoldersOfDependencies() {
  const manifest = JSON.parse(readFileSync(join(packageFolder, 'package.json'), 'utf8'))
  const { dependencies, peerDependencies, devDependencies } = manifest
  const names = new Set(Object.keys({ ...dependencies, ...peerDependencies, ...devDependencies }))
  return [...names]
    .filter((name) => name.startsWith('@moe-ep/'))
    .map((name) => join(packageFolder, 'node_modules', name, 'native', 'include'))
    .filter((folder) => existsSync(folder))
    .map((folder) => realpathSync(folder))
}

function run(command, args) {
  const result = spawnSync(command, args, { stdio: 'inherit' })
  if (result.error) {
    console.error(
      `moe-ep-native: cannot run ${command} (${result.error.message}); run: node tooling/native/ensure-toolchain.mjs`,
    )
    process.exit(1)
  }
  if (result.status !== 0) process.exit(result.status ?? 1)
}

run('cmake', [
  ...['-S', 'native', '-B', buildFolder, '-G', 'Ninja', '-DCMAKE_BUILD_TYPE=Release'],
  `-DMOE_EP_CMAKE_DIR=${join(toolFolder, 'cmake')}`,
  `-DMOE_EP_OUTPUT_DIR=${join(packageFolder, 'prebuilds', `${process.platform}-${process.arch}`)}`,
  `-DMOE_EP_INCLUDE_DIRS=${includeFoldersOfDependencies().join(';')}`,
  `-DMOE_EP_NODE_ADDON_API_DIR=${dirname(require.resolve('node-addon-api/package.json'))}`,
  `-DMOE_EP_NODE_API_HEADERS_DIR=${join(dirname(require.resolve('node-api-headers/package.json')), 'include')}`,
])
run('cmake', ['--build', buildFolder, '--parallel', String(availableParallelism())])
