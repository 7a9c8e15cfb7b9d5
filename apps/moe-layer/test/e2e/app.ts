import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll } from 'vitest'
import type { LayerResult } from '../../src/results/layer-result.js'

/** The built command: what a user runs. */
export const mainPath = fileURLToPath(new URL('../../dist/main.js', import.meta.url))

/** Where the app runs in these tests: MOE_EP_DEVICE says it. Ranks share the GPUs that there are. */
export const device = process.env['MOE_EP_DEVICE']?.startsWith('cuda') ? 'cuda' : 'cpu'
const deviceFlags = device === 'cuda' ? ['--device', 'cuda', '--share-gpus'] : []

/** How a run of the app ended. */
export interface AppEnd {
  readonly exitCode: number | null
  readonly stdout: string
  readonly stderr: string
}

/** A run that has begun. */
export interface AppRun {
  readonly child: ChildProcess
  /** Every process of this run has it in its environment. */
  readonly marker: string
  readonly ended: Promise<AppEnd>
}

export interface StartOptions {
  readonly environment?: Readonly<Record<string, string>>
  /** What runs the app instead of Node itself, as program and arguments; the app's own follow. */
  readonly command?: readonly string[]
}

/** The app with folders of its own: weights are shared by the tests of a file and removed after them. */
export interface App {
  start(args: readonly string[], options?: StartOptions): AppRun
  run(args: readonly string[], options?: StartOptions): Promise<AppEnd>
  /** A path in the folder of this test file. */
  path(name: string): string
  /** The folder that the app's temporary folders are made in. */
  readonly temporary: string
}

/** An app whose files go with the tests of this file. */
export function useApp(): App {
  let folder = ''
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'moe-layer-e2e-'))
    await mkdir(join(folder, 'temporary'))
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))
  const start = (
    args: readonly string[],
    { environment = {}, command = [process.execPath] }: StartOptions = {},
  ): AppRun => {
    const marker = randomUUID()
    const [program, ...before] = command as [string, ...string[]]
    // Another command has flags of its own.
    const flags = args[0]?.startsWith('-') === false ? [] : deviceFlags
    const child = spawn(program, [...before, mainPath, ...flags, ...args], {
      env: {
        ...process.env,
        ...{
          NODE_OPTIONS: '',
          TMPDIR: join(folder, 'temporary'),
          MOE_EP_CACHE: join(folder, 'cache'),
          MOE_LAYER_TEST: marker,
        },
        ...environment,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    return { child, marker, ended: endOf(child) }
  }
  return {
    start,
    run: (args, options) => start(args, options).ended,
    path: (name) => join(folder, name),
    get temporary() {
      return join(folder, 'temporary')
    },
  }
}

async function endOf(child: ChildProcess): Promise<AppEnd> {
  const [[exitCode], stdout, stderr] = await Promise.all([
    once(child, 'close'),
    text(child.stdout!),
    text(child.stderr!),
  ])
  return { exitCode: exitCode as number | null, stdout, stderr }
}

/** What `--json` prints when something failed. */
export interface Refusal {
  readonly ok: false
  readonly error: { readonly code: string; readonly message: string }
}

/** The one object on standard output. @throws when anything else is there. */
export function jsonOf<Printed = LayerResult>({ stdout, stderr }: AppEnd): Printed {
  if (!/^\{.*\}\n$/.test(stdout)) throw new Error(`expected one JSON object, got: ${stdout}\n${stderr}`)
  return JSON.parse(stdout) as Printed
}

/** Small sizes that keep a run short. */
export function small(sizes: Readonly<Record<string, string | number>> = {}): string[] {
  const all = { hidden: 64, intermediate: 32, experts: 16, topk: 4, tokens: 16, iters: 1, ...sizes }
  return ['--json', ...Object.entries(all).flatMap(([name, value]) => [`--${name}`, String(value)])]
}
