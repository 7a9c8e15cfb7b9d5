#!/usr/bin/env node
// Packs what is built here into .bundle/, for a GPU host that has neither network nor Node: see CONTRIBUTING.md.
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { root } from '../release/workspace.mjs'
import { bundleFiles, sizesByFolder } from './bundle-files.mjs'

const limit = 64 * 2 ** 20
const folder = join(root, '.bundle')
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`

function run(program, args, options = {}) {
  const result = spawnSync(program, args, { stdio: ['pipe', 'inherit', 'inherit'], ...options })
  if (result.error) throw result.error
  if (result.status !== 0) throw new Error(`${program} failed (${result.signal ?? result.status})`)
}

/** The running Node without its symbol table. It stays in the folder: packing it takes longer than all the rest. */
function packNode() {
  const name = `node-${process.version}.xz`
  if (existsSync(join(folder, name))) return name
  const temporary = mkdtempSync(join(tmpdir(), 'moe-ep-gpu-'))
  try {
    const node = join(temporary, 'node')
    copyFileSync(process.execPath, node)
    run('strip', [node])
    run('xz', ['-6', '--threads=0', node])
    copyFileSync(`${node}.xz`, join(folder, `${name}.part`))
    renameSync(join(folder, `${name}.part`), join(folder, name))
  } finally {
    rmSync(temporary, { recursive: true, force: true })
  }
  return name
}

function packWorkspace(paths) {
  const args = ['--create', '--null', '--no-recursion', '--files-from=-', '--owner=0', '--group=0']
  const env = { ...process.env, XZ_OPT: '-6 --threads=0' }
  run('tar', [...args, '--xz', '--file', join(folder, 'workspace.tar.xz')], { cwd: root, env, input: paths.join('\0') })
}

if (`${process.platform}-${process.arch}` !== 'linux-x64') throw new Error('the GPU host runs what linux-x64 builds')
const paths = bundleFiles(root)
mkdirSync(folder, { recursive: true })
const kept = [packNode(), 'workspace.tar.xz', 'run.sh']
for (const name of readdirSync(folder)) if (!kept.includes(name)) rmSync(join(folder, name), { recursive: true })
packWorkspace(paths)
copyFileSync(join(root, 'tooling', 'gpu', 'run.sh'), join(folder, 'run.sh'))

console.log('unpacked, the largest folders:')
const sizes = [...sizesByFolder(root, paths)].sort(([, a], [, b]) => b - a)
for (const [name, bytes] of sizes.slice(0, 8)) console.log(`  ${megabytes(bytes).padStart(9)}  ${name}`)
console.log('packed:')
for (const name of kept) console.log(`  ${megabytes(statSync(join(folder, name)).size).padStart(9)}  ${name}`)
const total = kept.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0)
console.log(`  ${megabytes(total).padStart(9)}  together`)
if (total > limit) {
  console.error(`pack: .bundle is larger than ${megabytes(limit)}`)
  process.exitCode = 1
}
