import { parseArgs } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { benchFlags, benchOptionsFrom } from '../src/command/bench-options.js'
import { isBetweenRanks } from '../src/command/operation-names.js'
import { CudaStopwatch } from '../src/measure/cuda-stopwatch.js'
import { measureCases } from '../src/measure/measure-cases.js'
import { Scope } from '../src/measure/scope.js'
import { operations } from '../src/operations/index.js'
import type { BenchContext } from '../src/operations/operation.js'
import { Routing } from '../src/workload/routing.js'
import { guardStandIn, standIn } from './stand-in.js'

beforeAll(guardStandIn)
afterAll(() => vi.restoreAllMocks())

describe.each(['graph', 'plan', 'eager'])('operations on a device, launched as %s', (launch) => {
  const flags = ['--device', 'cuda:0', '--launch', launch, '--ranks', '1', '--world', '4']
  const sizes = ['--tokens', '24', '--hidden', '144', '--experts', '16', '--topk', '3']
  const options = benchOptionsFrom(parseArgs({ args: [...flags, ...sizes], options: benchFlags }).values)
  const routing = new Routing({ ...options, ranks: options.world })

  it.each(options.ops.filter((name) => !isBetweenRanks(name)))('%s', async (name) => {
    const stopwatch = new CudaStopwatch(standIn)
    const scope = new Scope(standIn)
    const group = { rank: 0, worldSize: 1 }
    const context = { options, routing, stopwatch, device: standIn, group } as unknown as BenchContext
    const { subject, ceilings, floor, check, bytes } = await operations[name](context, scope)
    expect(ceilings).toEqual([])
    expect(floor !== undefined).toBe(bytes > 0)
    const samples = await measureCases([subject, ...(floor ? [floor] : [])], { iters: 1, warmup: 1 })
    expect(samples.flat().every((microseconds) => microseconds > 0)).toBe(true)
    expect(await check()).toBeUndefined()
    await scope.close()
    await stopwatch.close()
  })
})

it('compares with copies where bytes are many', async () => {
  const args = ['--device', 'cuda:0', '--ranks', '1', '--tokens', '512', '--hidden', '1024']
  const options = benchOptionsFrom(parseArgs({ args, options: benchFlags }).values)
  const stopwatch = new CudaStopwatch(standIn)
  const scope = new Scope(standIn)
  const group = { rank: 0, worldSize: 1 }
  const context = { options, stopwatch, device: standIn, group } as unknown as BenchContext
  const { subject, ceilings, floor } = await operations['quant.quantizePerToken'](context, scope)
  expect(floor).toBeUndefined()
  expect(ceilings.map(({ name }) => name)).toEqual(['memcpy', 'row copy'])
  const samples = await measureCases([subject, ...ceilings], { iters: 1, warmup: 0 })
  expect(samples.flat().every((microseconds) => microseconds > 0)).toBe(true)
  await scope.close()
  await stopwatch.close()
})
