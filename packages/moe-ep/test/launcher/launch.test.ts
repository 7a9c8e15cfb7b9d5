import { fileURLToPath } from 'node:url'
import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it, vi } from 'vitest'
import { type LaunchOptions, assertLaunched, launch } from '../../src/launcher/index.js'
import { checkGone } from './bundle.js'

const script = new URL('fixtures/rank.mjs', import.meta.url)

function run(behaviour: string, options: Partial<LaunchOptions> & { ranks: number }) {
  const { args = [], ...others } = options
  return launch({ script, args: [behaviour, ...args], execArgv: [], output: 'pipe', graceMs: 200, ...others })
}

function pidsIn(text: string | undefined): number[] {
  return [...(text ?? '').matchAll(/pid (\d+)/g)].map((match) => Number(match[1]))
}

describe.each(['process', 'thread'] as const)('launch in %s mode', (mode) => {
  it('gives every rank the variables to find the others, and its arguments', async () => {
    const environment = { EXTRA: 'yes', RANK: '77' }
    const result = await run('report', { ranks: 3, mode, args: ['--flag', 'a b'], environment })
    expect(result.ok).toBe(true)
    const reports = result.ranks.map(({ stdout }) => JSON.parse(stdout ?? ''))
    const { MASTER_PORT, MOE_EP_SECRET } = reports[0].variables
    expect(MOE_EP_SECRET).toMatch(/^[0-9a-f]{64}$/)
    expect(Number(MASTER_PORT)).toBeGreaterThan(0)
    reports.forEach((report, rank) => {
      expect(report.args).toEqual(['--flag', 'a b'])
      expect(report.variables).toEqual({
        ...{
          RANK: String(rank),
          WORLD_SIZE: '3',
          LOCAL_RANK: String(rank),
          LOCAL_WORLD_SIZE: '3',
          MASTER_ADDR: '127.0.0.1',
        },
        ...{ MASTER_PORT, MOE_EP_SECRET, EXTRA: 'yes' },
      })
    })
  })

  it('names the nodes in place of the local world size', async () => {
    const [rank] = (await run('report', { ranks: 2, mode, nodes: 2 })).ranks
    const { variables } = JSON.parse(rank?.stdout ?? '')
    expect(variables).toMatchObject({ MOE_EP_NODES: '2' })
    expect(variables).not.toHaveProperty('LOCAL_WORLD_SIZE')
  })

  it('hands over lines, also the last one without an end', async () => {
    const lines: string[] = []
    const output = (rank: number, stream: string, line: string) => lines.push(`${rank} ${stream} ${line}`)
    await run('write', { ranks: 2, mode, output })
    const expected = [0, 1].flatMap((rank) => [
      ...[`${rank} stdout first`, `${rank} stdout second ${rank}`, `${rank} stdout no end of line`],
      `${rank} stderr a warning`,
    ])
    expect(lines.sort()).toEqual(expected.sort())
  })

  it('prefixes lines by default', async () => {
    const written: string[] = []
    const spies = (['stdout', 'stderr'] as const).map((name) =>
      vi.spyOn(process[name], 'write').mockImplementation((chunk) => written.push(`${name} ${String(chunk)}`) > 0),
    )
    await run('write', { ranks: 1, mode, output: undefined })
    for (const spy of spies) spy.mockRestore()
    const expected = [
      'stderr [0] a warning\n',
      'stdout [0] first\n',
      'stdout [0] no end of line\n',
      'stdout [0] second 0\n',
    ]
    expect(written.sort()).toEqual(expected)
  })

  it('keeps only the last MiB', async () => {
    const [rank] = (await run('flood', { ranks: 1, mode })).ranks
    expect(rank?.stdout).toHaveLength(2 ** 20)
    expect(rank?.stdout?.endsWith('xend')).toBe(true)
  })

  it('ends the others when a rank fails, and says which was first and how', async () => {
    const result = await run('fail', { ranks: 3, mode, args: ['1'] })
    expect(result).toMatchObject({ ok: false, firstFailure: { rank: 1, exitCode: 7, signal: null } })
    expect(result.stoppedBy).toBeUndefined()
    const ended = mode === 'process' ? { exitCode: null, signal: 'SIGTERM' } : { exitCode: 1, signal: null }
    expect(result.ranks).toMatchObject([ended, { exitCode: 7 }, ended])
    const refused = expect.objectContaining({
      ...{ code: 'ERR_MOE_EP_LAUNCH', message: 'rank 1 ended with exit code 7' },
      details: expect.objectContaining({ rank: 1 }),
    })
    expect(() => assertLaunched(result)).toThrow(refused)
  })

  it('shows the exception that ended a rank', async () => {
    const result = await run('throwError', { ranks: 2, mode })
    expect(result.firstFailure).toMatchObject({ rank: 1, exitCode: 1 })
    expect(result.firstFailure?.stderr).toContain('went wrong on purpose')
  })

  it('ends ranks whose JavaScript thread is blocked', async () => {
    const result = await run('spin', { ranks: 2, mode })
    expect(result).toMatchObject({ ok: false, firstFailure: { rank: 0, exitCode: 4 } })
  })

  it('ends all ranks at the deadline', async () => {
    const result = await run('wait', { ranks: 2, mode, timeoutMs: 700 })
    expect(result).toMatchObject({ ok: false, stoppedBy: 'timeout' })
    expect(result.firstFailure).toBeUndefined()
    expect(() => assertLaunched(result)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_TIMEOUT' }))
  })

  it('ends all ranks when the signal aborts', async () => {
    const controller = new AbortController()
    const output = () => controller.abort()
    const result = await run('wait', { ranks: 2, mode, signal: controller.signal, output })
    expect(result).toMatchObject({ ok: false, stoppedBy: 'abort' })
    expect(() => assertLaunched(result)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ABORTED' }))
  })

  it('passes options of Node on', async () => {
    const execArgv = mode === 'process' ? ['--expose-gc'] : ['--no-warnings']
    const result = await run('report', { ranks: 1, mode, execArgv })
    expect(JSON.parse(result.ranks[0]?.stdout ?? '').exposesGc).toBe(mode === 'process')
  })
})

describe('launch', () => {
  it('reports a rank that a signal ended', async () => {
    const result = await run('killSelf', { ranks: 2 })
    expect(result.firstFailure).toMatchObject({ rank: 0, exitCode: null, signal: 'SIGKILL' })
    expect(() => assertLaunched(result)).toThrow('rank 0 was ended by SIGKILL')
  })

  it('kills a rank that does not heed SIGTERM', async () => {
    const result = await run('stubborn', { ranks: 2 })
    expect(result.ranks).toMatchObject([{ exitCode: 3 }, { signal: 'SIGKILL' }])
    expect(result.ranks[1]?.stdout).toContain('not yet')
  })

  it('leaves no process of a rank behind, whether the rank ended by itself or was ended', async () => {
    const result = await run('withChild', { ranks: 2, timeoutMs: 1500 })
    expect(result.ranks).toMatchObject([{ exitCode: 0 }, { signal: 'SIGTERM' }])
    const pids = result.ranks.flatMap(({ stdout }) => pidsIn(stdout))
    expect(pids).toHaveLength(2)
    await checkGone(pids)
  })

  it('leaves no listener behind in this process', async () => {
    const count = () => ['SIGINT', 'SIGTERM', 'SIGHUP'].map((name) => process.listenerCount(name))
    const before = count()
    await run('write', { ranks: 1 })
    expect(count()).toEqual(before)
  })

  it('takes a path as well as a URL', async () => {
    const result = await launch({
      ranks: 1,
      script: fileURLToPath(script),
      args: ['write'],
      execArgv: [],
      output: 'pipe',
    })
    expect(assertLaunched(result)).toBe(result)
  })

  it.each<[string, Partial<LaunchOptions>]>([
    ['ranks', { ranks: 0 }],
    ['ranks', { ranks: 1.5 }],
    ['nodes', { nodes: 3 }],
    ['script', { script: 'nowhere.mjs' }],
    ['script', { script: new URL('https://localhost/rank.mjs') }],
    ['script', { script: new URL('.', import.meta.url) }],
    ['args', { args: [1] as unknown as string[] }],
    ['mode', { mode: 'fibre' as 'thread' }],
    ['output', { output: 'loud' as 'pipe' }],
    ['host', { host: '' }],
    ['timeoutMs', { timeoutMs: -1 }],
    ['graceMs', { graceMs: Number.POSITIVE_INFINITY }],
  ])('refuses a bad option %s before anything starts', async (argument, options) => {
    const failure = launch({ ranks: 2, script, args: ['wait'], ...options })
    await expect(failure).rejects.toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } })
  })

  it('refuses a host that is not of this machine, and a signal that has aborted', async () => {
    await expect(run('write', { ranks: 1, host: '192.0.2.1' })).rejects.toMatchObject({ code: 'ERR_MOE_EP_CONNECT' })
    const failure = run('write', { ranks: 1, signal: AbortSignal.abort() })
    await expect(failure).rejects.toSatisfy((error) => MoeEpError.isInstance(error, 'ERR_MOE_EP_ABORTED'))
  })
})
