import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'

let folder = ''
beforeEach(() => void (folder = mkdtempSync(join(tmpdir(), 'moe-ep-run-'))))
afterEach(() => rmSync(folder, { recursive: true, force: true }))

function writeProgram(path, lines) {
  mkdirSync(join(folder, path, '..'), { recursive: true })
  writeFileSync(join(folder, path), ['#!/usr/bin/env bash', ...lines, ''].join('\n'), { mode: 0o755 })
}

/** A bundle whose Node does nothing, and a sanitizer that finds an error and then does what `rest` says. */
function makeBundle(rest) {
  mkdirSync(join(folder, 'bundle'))
  mkdirSync(join(folder, 'tmp'))
  writeProgram('node', ['exit 0'])
  const inFolder = { cwd: folder }
  execFileSync('tar', ['-cJf', 'bundle/workspace.tar.xz', '--files-from=/dev/null'], inFolder)
  writeFileSync(join(folder, 'bundle', 'node-v0.xz'), execFileSync('xz', ['-c', 'node'], inFolder))
  copyFileSync(fileURLToPath(new URL('../run.sh', import.meta.url)), join(folder, 'bundle', 'run.sh'))
  writeProgram('bin/compute-sanitizer', [
    'while [[ $1 != --log-file ]]; do shift; done',
    'echo "========= found something" >"${2/\\%p/7}"',
    rest,
  ])
}

function runUnderMemcheck() {
  const args = ['bundle/run.sh', '--out', 'out', '--sanitize', 'memcheck', 'node', 'script.mjs']
  const env = { ...process.env, PATH: `${join(folder, 'bin')}:${process.env.PATH}`, TMPDIR: join(folder, 'tmp') }
  // A group of its own, so that it can be ended as `timeout` does it.
  return spawn('bash', args, { cwd: folder, env, detached: true, stdio: 'ignore' })
}

const log = () => join(folder, 'out', 'sanitizer-logs', '7.txt')

/** A log is there before its first line is. */
async function untilLogged() {
  while (!existsSync(log()) || statSync(log()).size === 0) await delay(1)
}

const report = () => readFileSync(join(folder, 'out', 'sanitizer.txt'), 'utf8')

test("a sanitizer's errors end the run with 99, and its logs become one file", async () => {
  makeBundle('echo "========= ERROR SUMMARY: 1 error" >>"${2/\\%p/7}"')
  const [code] = await once(runUnderMemcheck(), 'exit')
  expect(code).toBe(99)
  expect(report()).toContain('found something')
  expect(readdirSync(join(folder, 'out'))).not.toContain('sanitizer-logs')
})

test('what a sanitizer has found is kept when the run is ended from outside', async () => {
  makeBundle('exec sleep 60')
  const run = runUnderMemcheck()
  const exit = once(run, 'exit')
  await untilLogged()
  process.kill(-run.pid, 'SIGTERM')
  expect((await exit)[0]).toBe(143)
  expect(report()).toContain('found something')
})

test('its logs are where results go even when the run is killed', async () => {
  makeBundle('exec sleep 60')
  const run = runUnderMemcheck()
  const exit = once(run, 'exit')
  await untilLogged()
  process.kill(-run.pid, 'SIGKILL')
  await exit
  expect(readFileSync(log(), 'utf8')).toContain('found something')
})
