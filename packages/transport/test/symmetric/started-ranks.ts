import { existsSync } from 'node:fs'
import { afterEach, expect } from 'vitest'
import { endsOf, type Launch, launch, type RunningRank } from './launch.js'
import { countMappings, eventually, noSocketStays } from './world.js'

/** How the tests of a file start ranks that play `script`. After each test they are ended, and nothing of them may be left. */
export function starterOf(script: URL): (options: Omit<Launch, 'script'>) => Promise<RunningRank[]> {
  let ranks: RunningRank[] = []
  afterEach(async () => {
    for (const rank of ranks) rank.kill()
    await endsOf(ranks)
    expect(ranks.filter(({ pid }) => pid !== undefined && existsSync(`/proc/${pid}`))).toEqual([])
    await eventually(() => countMappings() === 0, 'no mapping is left')
    await noSocketStays()
  })
  return async (options) => (ranks = await launch({ script, ...options }))
}
