import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { parseRunArguments } from '../../src/cli/run-command.js'
import { type Bundle, bundle, checkGone } from './bundle.js'

const script = fileURLToPath(new URL('fixtures/rank.mjs', import.meta.url))
let command: Bundle
const cleanUps: (() => void)[] = []

beforeAll(async () => {
  command = await bundle('../../src/cli/bin.ts')
})
afterAll(() => command.remove())
afterEach(() => {
  for (const cleanUp of cleanUps.splice(0)) cleanUp()
})

function start(...args: string[]) {
  const child = spawn(process.execPath, [command.path, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  cleanUps.push(() => child.kill('SIGKILL'))
  const output = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk) => (output.stdout += chunk))
  child.stderr.on('data', (chunk) => (output.stderr += chunk))
  const ended = new Promise<number | string | null>((resolve) =>
    child.once('close', (code, signal) => resolve(signal ?? code)),
  )
  /** Resolves with the process ids of the ranks once so many have told theirs. */
  const pids = (count: number) =>
    new Promise<number[]>((resolve) => {
      const look = () => {
        const found = [...output.stdout.matchAll(/pid (\d+)\n/g)].map((match) => Number(match[1]))
        if (found.length === count) resolve(found)
      }
      child.stdout.on('data', look)
      look()
    })
  return { child, output, ended, pids }
}

describe('moe-ep run', () => {
  it('ends with 0 when every rank did, and prefixes what they write', async () => {
    const { ended, output } = start('run', '-n', '2', script, 'write')
    expect(await ended).toBe(0)
    const lines = output.stdout.split('\n').sort()
    expect(lines).toEqual([
      '',
      '[0] first',
      '[0] no end of line',
      '[0] second 0',
      '[1] first',
      '[1] no end of line',
      '[1] second 1',
    ])
    expect(output.stderr.split('\n').sort()).toEqual(['', '[0] a warning', '[1] a warning'])
  })

  it.each([[[]], [['--threads']]])('says which rank failed: %j', async (flags) => {
    const { ended, output } = start('run', '-n', '2', ...flags, script, 'throwError')
    expect(await ended).toBe(1)
    expect(output.stderr).toMatch(/moe-ep: rank 1 ended with exit code 1.*\(first of 2 ranks that failed\)/)
  })

  it('stops at its deadline', async () => {
    const { ended, output } = start('run', '-n', '2', '--timeout-ms', '500', script, 'wait')
    expect(await ended).toBe(1)
    expect(output.stderr).toContain('stopped by the deadline')
  })

  it('passes SIGINT on to the ranks and ends as a shell expects', async () => {
    const { child, ended, pids } = start('run', '-n', '2', script, 'interrupted')
    const ranks = await pids(2)
    child.kill('SIGINT')
    expect(await ended).toBe(130)
    await checkGone(ranks)
  })

  it('leaves no rank behind when it is killed itself', async () => {
    const { child, ended, pids } = start('run', '-n', '3', script, 'wait')
    const ranks = await pids(3)
    child.kill('SIGKILL')
    expect(await ended).toBe('SIGKILL')
    await checkGone(ranks)
  })

  it('leaves no rank behind that does not heed SIGTERM when it is killed itself', async () => {
    const { child, pids } = start('run', '-n', '2', script, 'deaf')
    const ranks = await pids(2)
    child.kill('SIGKILL')
    await checkGone(ranks)
  })
})

describe('moe-ep', () => {
  it('prints its version and how to use it', async () => {
    const version = start('--version')
    const help = start('--help')
    expect([await version.ended, await help.ended]).toEqual([0, 0])
    const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
    expect(version.output.stdout).toBe(`${manifest.version}\n`)
    expect(help.output.stdout).toContain('moe-ep run -n RANKS')
  })

  it.each<[string[], string]>([
    [[], 'a command is missing'],
    [['walk'], 'unknown command line'],
    [['run'], 'run needs a script'],
    [['run', script], 'run needs the number of ranks'],
    [['run', '-n', 'two', script], '-n: expected a number'],
    [['run', '-n', '2', '--fast', script], '--fast'],
    [['run', '-n', '0', script], 'ranks: expected'],
    [['run', '-n', '1', 'nowhere.mjs'], 'script: expected an existing file'],
  ])('refuses %j', async (args, message) => {
    const { ended, output } = start(...args)
    expect(await ended).toBe(2)
    expect(output.stderr).toContain(message)
  })
})

describe('parseRunArguments', () => {
  it('leaves everything after the script to the script', () => {
    const args = [
      '--nodes',
      '2',
      '-n',
      '8',
      '--threads',
      '--timeout-ms=900',
      'layer.js',
      '--nodes',
      '9',
      '-n',
      '--',
      'x',
    ]
    expect(parseRunArguments(args)).toEqual({
      ...{ ranks: 8, nodes: 2, mode: 'thread', timeoutMs: 900, script: 'layer.js' },
      args: ['--nodes', '9', '-n', '--', 'x'],
    })
  })

  it('takes a script after --', () => {
    expect(parseRunArguments(['-n2', '--', '-odd-name.js', 'x'])).toMatchObject({
      ranks: 2,
      script: '-odd-name.js',
      args: ['x'],
    })
  })
})
