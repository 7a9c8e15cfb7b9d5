import { readdirSync, readFileSync } from 'node:fs'
import { describe, expect, it, vi } from 'vitest'
import { type AppRun, jsonOf, type Refusal, small, useApp } from './app.js'

const app = useApp()
const ranks = 3
/** Far more passes than a test lives for. */
const endless = small({ ranks, iters: 1_000_000 })

function readProcess(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1')
  } catch {
    // It has ended meanwhile.
    return ''
  }
}

/** Living processes of a run, with their rank where they are one. */
function processesOf({ marker }: AppRun): { pid: number; rank: number | undefined }[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => ({ pid, variables: readProcess(pid, 'environ').split('\0') }))
    .filter(({ variables }) => variables.includes(`MOE_LAYER_TEST=${marker}`))
    .map(({ pid, variables }) => {
      const rank = variables.find((variable) => variable.startsWith('RANK='))
      return { pid: Number(pid), rank: rank === undefined ? undefined : Number(rank.slice(5)) }
    })
}

/** Ranks that work: a million passes can only have begun once the memory of all ranks is mapped. */
async function workingRanks(run: AppRun): Promise<{ pid: number; rank: number | undefined }[]> {
  const mapsAll = ({ pid }: { pid: number }): boolean => {
    const segments = readProcess(String(pid), 'maps').match(/^.*memfd:moe-ep.*$/gm) ?? []
    return new Set(segments.map((line) => line.split(/\s+/)[4])).size === ranks
  }
  return vi.waitFor(
    () => {
      const working = processesOf(run).filter(({ rank, pid }) => rank !== undefined && mapsAll({ pid }))
      expect(working).toHaveLength(ranks)
      return working
    },
    { timeout: 30_000, interval: 20 },
  )
}

async function expectNothingLeft(run: AppRun): Promise<void> {
  await expect.poll(() => processesOf(run), { timeout: 15_000 }).toEqual([])
  // Other tests of this machine may exchange memory just now; their sockets live for milliseconds.
  await expect.poll(() => readFileSync('/proc/net/unix', 'latin1'), { timeout: 15_000 }).not.toContain('@moe-ep-')
  expect(readdirSync('/dev/shm').filter((name) => name.includes('moe'))).toEqual([])
}

describe('a rank that is killed in mid run', () => {
  it.each([
    [0, 'ht'],
    [1, 'ht'],
    [2, 'ht'],
    [1, 'll'],
  ])('ends the others with an error that names it: rank %d, mode %s', async (victim, mode) => {
    const run = app.start([...endless, '--mode', mode])
    const working = await workingRanks(run)
    process.kill(working.find(({ rank }) => rank === victim)!.pid, 'SIGKILL')
    const end = await run.ended
    const { ok, error } = jsonOf<Refusal>(end)
    expect([ok, error.code, end.exitCode]).toEqual([false, 'ERR_MOE_EP_LAUNCH', 1])
    expect(error.message).toContain(`rank ${victim} ended by SIGKILL`)
    // What the others noticed, each with a named error of its own.
    const others = [0, 1, 2].filter((rank) => rank !== victim)
    for (const rank of others)
      expect(error.message).toMatch(new RegExp(`^rank ${rank}: ERR_MOE_EP_PEER_LOST: .*${victim}`, 'm'))
    await expectNothingLeft(run)
    expect(readdirSync(app.temporary)).toEqual([])
  })
})

describe('a run that is stopped', () => {
  it.each(['SIGTERM', 'SIGINT'] as const)('by %s says so and leaves nothing', async (signal) => {
    const run = app.start(endless)
    await workingRanks(run)
    run.child.kill(signal)
    const end = await run.ended
    const { error } = jsonOf<Refusal>(end)
    expect([error.code, end.exitCode]).toEqual(['ERR_MOE_EP_ABORTED', 1])
    expect(error.message).toContain(signal)
    await expectNothingLeft(run)
    expect(readdirSync(app.temporary)).toEqual([])
  })

  it('by SIGKILL of the command leaves no rank behind', async () => {
    const run = app.start(endless)
    await workingRanks(run)
    run.child.kill('SIGKILL')
    await run.ended
    await expectNothingLeft(run)
  })
})

it.each(['ht', 'll'])(
  'a rank that is stopped is missed at the deadline, and the error names who waited for whom: mode %s',
  async (mode) => {
    const run = app.start([...endless, '--mode', mode, '--timeout-ms', '1500'])
    const working = await workingRanks(run)
    const { pid } = working.find(({ rank }) => rank === 1)!
    process.kill(pid, 'SIGSTOP')
    const end = await run.ended
    const { error } = jsonOf<Refusal>(end)
    expect([error.code, end.exitCode]).toEqual(['ERR_MOE_EP_TIMEOUT', 1])
    expect(error.message).toMatch(/rank [02]\b.*ranks?:? 1\b/s)
    await expectNothingLeft(run)
  },
)
