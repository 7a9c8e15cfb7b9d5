import { pathToFileURL } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type LaunchOptions, launch } from '../../src/launcher/index.js'
import { type Bundle, bundle } from './bundle.js'

let rendezvous: Bundle
beforeAll(async () => {
  rendezvous = await bundle('../../../transport/src/rendezvous/index.ts')
})
afterAll(() => rendezvous.remove())

function run(args: string[], options: Partial<LaunchOptions> = {}) {
  const environment = { RENDEZVOUS: pathToFileURL(rendezvous.path).href, MOE_EP_TIMEOUT_MS: '20000' }
  const script = new URL('fixtures/group.mjs', import.meta.url)
  return launch({ ranks: 4, script, args, environment, execArgv: [], output: 'pipe', graceMs: 20_000, ...options })
}

describe.each(['process', 'thread'] as const)('ranks that were launched in %s mode', (mode) => {
  it('form a group', async () => {
    const { ok, ranks } = await run([], { mode, nodes: 2 })
    expect(ranks.map(({ stdout }) => stdout)).toEqual([0, 0, 1, 1].map((node) => `gathered 0 1 2 3, node ${node}\n`))
    expect(ok).toBe(true)
  })

  it('end by themselves with a named error when one of them goes away', async () => {
    const { firstFailure, ranks } = await run(['exit'], { mode })
    expect(ranks[1]).toMatchObject({ exitCode: 9 })
    // The others hear of it through their connections, maybe before the launcher hears of the rank itself.
    expect(firstFailure).toEqual(ranks[firstFailure!.rank])
    for (const rank of [0, 2, 3])
      expect(ranks[rank]).toMatchObject({ exitCode: 1, signal: null, stderr: 'ERR_MOE_EP_PEER_LOST\n' })
  })
})

it('ranks end by themselves with a named error when one of them is killed', async () => {
  const { firstFailure, ranks } = await run(['die'])
  expect(ranks[1]).toMatchObject({ exitCode: null, signal: 'SIGKILL' })
  expect(firstFailure).toEqual(ranks[firstFailure!.rank])
  for (const rank of [0, 2, 3]) expect(ranks[rank]).toMatchObject({ exitCode: 1, stderr: 'ERR_MOE_EP_PEER_LOST\n' })
})
