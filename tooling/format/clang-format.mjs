#!/usr/bin/env node
// Formats (--write) or checks (--check) all C++ and CUDA files with the clang-format that npm brought, so that every
// machine agrees on the result.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))
const sourceFolders = ['packages', 'apps', 'tooling']
const skippedFolders = new Set(['node_modules', 'dist', 'build', 'prebuilds', 'third_party'])
const { clangFormatPath } = createRequire(import.meta.url)('clang-format-node')

function* sourcesIn(folder) {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory() && !skippedFolders.has(entry.name)) yield* sourcesIn(path)
    if (entry.isFile() && /\.(cc|h|cu|cuh)$/.test(entry.name)) yield path
  }
}

const mode = process.argv[2]
if (mode !== '--write' && mode !== '--check') {
  console.error('usage: clang-format.mjs --write | --check')
  process.exit(2)
}

const sources = sourceFolders.flatMap((folder) => [...sourcesIn(folder)]).sort()
if (sources.length > 0) {
  const args = mode === '--write' ? ['-i'] : ['--dry-run', '--Werror']
  const result = spawnSync(clangFormatPath, [...args, ...sources], { cwd: root, stdio: 'inherit' })
  if (result.error) throw result.error
  if (result.status !== 0) process.exit(1)
}
console.error(`clang-format: ${sources.length} files ${mode === '--write' ? 'formatted' : 'in order'}`)
