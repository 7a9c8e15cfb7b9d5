#!/usr/bin/env node
// Installs what some suites want beyond the build's own tools, where that can be done unasked: as root, with apt-get.
// Never fails: a suite whose tool is missing is listed with the reason at the end of the tests.
import { spawnSync } from 'node:child_process'

/** Program that a suite looks for, and the Debian package that brings it. */
const tools = [{ program: 'chromium', debianPackage: 'chromium' }]

function isOnPath(program) {
  return spawnSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' }).status === 0
}

function run(program, args) {
  console.error(`ensure-test-tools: running ${program} ${args.join(' ')}`)
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  return spawnSync(program, args, { stdio: ['ignore', 2, 2], env }).status === 0
}

const missing = tools.filter(({ program }) => !isOnPath(program))
if (missing.length > 0) {
  const packages = missing.map(({ debianPackage }) => debianPackage)
  if (process.getuid?.() === 0 && isOnPath('apt-get')) {
    run('apt-get', ['update'])
    run('apt-get', ['install', '-y', '--no-install-recommends', ...packages])
  } else {
    console.error(`ensure-test-tools: some suites will be left out; to have all of them install: ${packages.join(' ')}`)
  }
}
