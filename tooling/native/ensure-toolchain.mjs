#!/usr/bin/env node
// Makes sure that everything the native build needs is on this machine and notes what was found in .toolchain.json.
//
// Runs before every build, so it must be quick when nothing is missing and must not write to standard output:
// `moe-layer --json` promises that its object is alone there.
import { spawnSync } from 'node:child_process'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { inspectToolchain, oldestNode } from './inspect-toolchain.mjs'
import { writeIfChanged } from './write-if-changed.mjs'

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))

/** What each tool is called by the package managers that we can name a command for. */
const packageManagers = [
  { program: 'apt-get', install: ['install', '-y'], names: { compiler: 'g++', cmake: 'cmake', ninja: 'ninja-build' } },
  { program: 'dnf', install: ['install', '-y'], names: { compiler: 'gcc-c++', cmake: 'cmake', ninja: 'ninja-build' } },
]

function log(message) {
  console.error(`ensure-toolchain: ${message}`)
}

function fail(message) {
  log(message)
  process.exit(1)
}

function isOnPath(program) {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined
}

function runQuietOnStdout(program, args) {
  log(`running ${program} ${args.join(' ')}`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  return spawnSync(program, args, { stdio: ['ignore', 2, 2], env }).status === 0
}

/** Installs what is missing where we may, otherwise ends with the exact command that the user can run. */
function provide(missing) {
  const manager = packageManagers.find(({ program }) => isOnPath(program))
  const reasons = missing.map(({ tool, reason }) => `${tool} (${reason})`).join(', ')
  if (!manager)
    fail(`missing: ${reasons}. Install a C++20 compiler, CMake 3.25 or newer and Ninja, then run this again.`)

  const isRoot = process.getuid?.() === 0
  const install = [...manager.install, ...missing.map(({ tool }) => manager.names[tool])]
  if (!isRoot || manager.program !== 'apt-get') {
    fail(`missing: ${reasons}. Run: ${isRoot ? '' : 'sudo '}${manager.program} ${install.join(' ')}`)
  }

  log(`missing: ${reasons}`)
  // Package lists that are already there may do even when a mirror cannot be refreshed, so only the install decides.
  runQuietOnStdout('apt-get', ['update'])
  if (!runQuietOnStdout('apt-get', install)) fail(`could not install ${reasons}; see the output of apt-get above.`)
}

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
if (major < oldestNode.major || (major === oldestNode.major && minor < oldestNode.minor)) {
  const wanted = `${oldestNode.major}.${oldestNode.minor}`
  fail(`Node ${process.versions.node} is too old: install ${wanted} or newer from https://nodejs.org`)
}

let found = await inspectToolchain()
if (found.missing.length > 0) {
  provide(found.missing)
  found = await inspectToolchain()
  if (found.missing.length > 0) {
    fail(`still missing: ${found.missing.map(({ tool, reason }) => `${tool} (${reason})`).join(', ')}`)
  }
}

// Turbo hashes this file: its content stands for everything that a cached addon depends on outside the repository.
writeIfChanged(join(root, '.toolchain.json'), `${JSON.stringify(found.toolchain, undefined, 2)}\n`)
