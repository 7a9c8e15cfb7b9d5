#!/usr/bin/env node
// Checks what would be published: packs every package, looks at the tarball (publint, attw), and uses each one alone in
// an empty folder. `check-packages.mjs @moe-ep/layout` checks only the packages that are named.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { folderNameOf, toolPath, tryAsConsumer } from './consumer.mjs'
import { hygieneProblems } from './hygiene.mjs'
import { runProgram } from './run-program.mjs'
import { publishedPackages, root } from './workspace.mjs'

const concurrency = 2

/** Packs all packages at once: for each name, the tarball and the paths that are in it. */
async function packAll(folder) {
  const { packageManager } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  mkdirSync(folder)
  const args = ['-y', packageManager, '--recursive', '--filter', './packages/*', 'pack', '--json']
  const packed = JSON.parse(await runProgram('npx', [...args, '--pack-destination', folder], { cwd: root }))
  const entries = Array.isArray(packed) ? packed : [packed]
  return new Map(
    entries.map(({ name, filename, files }) => [name, { tarball: filename, paths: files.map(({ path }) => path) }]),
  )
}

function checkAddon({ name, folder }, { paths }) {
  if (!existsSync(join(folder, 'native', 'CMakeLists.txt'))) return
  const place = `prebuilds/${process.platform}-${process.arch}/`
  if (paths.some((path) => path.startsWith(place) && path.endsWith('.node'))) return
  throw new Error(`${name}: the tarball has no addon under ${place}; was it built?`)
}

async function checkPackage(published, context) {
  const packed = context.packed.get(published.name)
  if (!packed) throw new Error(`${published.name} was not packed`)
  checkAddon(published, packed)
  await runProgram(toolPath('publint'), ['--strict', packed.tarball], { cwd: root })
  await runProgram(toolPath('attw'), ['--no-color', '--no-emoji', packed.tarball], { cwd: root })
  await tryAsConsumer(published, { ...context, folder: join(context.folder, folderNameOf(published.name)) })
}

/** The error with its causes, outermost first. */
function explain(error) {
  return error.cause ? `${error.message}\n${explain(error.cause)}` : error.message
}

async function checkAll(chosen, context) {
  let failures = 0
  const queue = [...chosen]
  const worker = async () => {
    for (let published = queue.shift(); published; published = queue.shift()) {
      const started = performance.now()
      const failure = await checkPackage(published, context).then(() => undefined, explain)
      const seconds = ((performance.now() - started) / 1000).toFixed(1)
      console.log(`${failure ? 'FAILED' : 'ok    '} ${published.name} (${seconds} s)`)
      if (failure) {
        failures += 1
        console.log(failure.replace(/^/gm, '    '))
      }
    }
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  return failures
}

const packages = publishedPackages()
const names = process.argv.slice(2)
const unknown = names.filter((name) => !packages.has(name))
if (unknown.length > 0) {
  console.error(`no such package: ${unknown.join(', ')}; there are ${[...packages.keys()].join(', ')}`)
  process.exit(2)
}

const problems = hygieneProblems(packages)
for (const problem of problems) console.log(`FAILED ${problem}`)

const folder = mkdtempSync(join(tmpdir(), 'moe-ep-packages-'))
process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
const packed = await packAll(join(folder, 'tarballs'))
const chosen = [...packages.values()].filter(({ name }) => names.length === 0 || names.includes(name))
const failures = await checkAll(chosen, { folder, packages, packed })
console.log(`${chosen.length - failures} of ${chosen.length} packages in order, ${problems.length} other problems`)
if (failures + problems.length > 0) process.exitCode = 1
