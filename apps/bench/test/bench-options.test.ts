import { parseArgs } from 'node:util'
import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { benchFlags, type BenchOptions, benchOptionsFrom } from '../src/command/bench-options.js'
import { operationNames, selectOperations } from '../src/command/operation-names.js'

function parse(...args: string[]): BenchOptions {
  return benchOptionsFrom(parseArgs({ args, options: benchFlags }).values)
}

function codeOf(run: () => unknown): string {
  try {
    run()
  } catch (error) {
    return MoeEpError.isInstance(error) ? `${error.code} ${error.message}` : String(error)
  }
  return 'no error'
}

describe('benchOptionsFrom', () => {
  it('fills defaults in', () => {
    const options = parse()
    expect(options).toMatchObject({
      device: 'cpu',
      ranks: 2,
      tokens: 1024,
      hidden: 2048,
      topk: 8,
      experts: 64,
      seed: 1,
    })
    expect(options.ops).toEqual(operationNames)
    expect(options.threads).toBeGreaterThanOrEqual(1)
  })

  it('takes sizes from a preset, and single sizes over it', () => {
    expect(parse('--preset', 'h7168')).toMatchObject({ tokens: 4096, hidden: 7168, topk: 8, experts: 256 })
    expect(parse('--preset', 'h7168', '--tokens', '7')).toMatchObject({ tokens: 7, hidden: 7168 })
  })

  it.each([
    [['--ranks', '0'], '--ranks'],
    [['--ranks', 'two'], '--ranks'],
    [['--tokens=-1'], '--tokens'],
    [['--tokens', '1.5'], '--tokens'],
    [['--tokens', ''], '--tokens'],
    [['--hidden', '2050'], '--hidden'],
    [['--hidden', '0'], '--hidden'],
    [['--topk', '33'], '--topk'],
    [['--topk', '9', '--experts', '8'], '--topk'],
    [['--experts', '0'], '--experts'],
    [['--threads', '257'], '--threads'],
    [['--iters', '0'], '--iters'],
    [['--warmup', 'x'], '--warmup'],
    [['--seed', '2147483648'], '--seed'],
    [['--timeout-ms', '0'], '--timeout-ms'],
    [['--preset', 'large'], '--preset'],
    [['--preset', 'toString'], '--preset'],
    [['--ops', 'nothing'], '--ops'],
    [['--device', 'gpu'], '--device'],
    [['--device', 'cuda:'], '--device'],
    [['--device', 'cuda:0'], '--device'],
    [['--launch', 'graph'], '--launch'],
    [['--device', 'cuda', '--launch', 'fast'], '--launch'],
    [['--world', '1'], '--world'],
    [['--ops', 'all,'], '--ops'],
  ])('refuses %j', (args, flag) => {
    expect(codeOf(() => parse(...args))).toContain(`ERR_MOE_EP_CONFIG ${flag}`)
  })

  it('takes a device, and how its work is launched', () => {
    expect(parse('--device', 'auto')).toMatchObject({ device: 'cpu', launch: 'eager' })
    expect(parse('--device', 'cuda')).toMatchObject({ device: 'cuda', launch: 'graph', ranks: 2, shareGpus: false })
    const one = ['--device', 'cuda:1', '--launch', 'plan']
    expect(parse(...one, '--ranks', '1')).toMatchObject({ device: 'cuda:1', launch: 'plan' })
    expect(parse(...one, '--share-gpus')).toMatchObject({ device: 'cuda:1', ranks: 2, shareGpus: true })
  })

  it('draws routing for the ranks that run, or for more', () => {
    expect(parse('--ranks', '3')).toMatchObject({ ranks: 3, world: 3 })
    expect(parse('--ranks', '1', '--world', '8')).toMatchObject({ ranks: 1, world: 8 })
  })

  it('leaves out of all what cannot be measured', () => {
    const prefixes = (...args: string[]): string[] => [
      ...new Set(parse(...args).ops.map((name) => name.split('.')[0]!)),
    ]
    expect(prefixes('--device', 'cuda')).toEqual(['layout', 'quant', 'deepgemm-permute', 'enqueue'])
    const larger = prefixes('--ranks', '1', '--world', '2')
    expect(larger).toEqual(['layout', 'quant', 'deepgemm-permute', 'transport', 'rendezvous', 'enqueue'])
  })

  it.each([
    [['--device', 'cuda', '--ops', 'layout,transport.put'], 'on cuda'],
    [['--device', 'cuda', '--ops', 'all,barrier'], 'on cuda'],
    [['--ranks', '1', '--world', '2', '--ops', 'intranode-ht'], 'only 1 of 2 run'],
  ])('refuses %j, which names what cannot be measured', (args, reason) => {
    expect(codeOf(() => parse(...args))).toMatch(new RegExp(`ERR_MOE_EP_UNSUPPORTED --ops .*${reason}`))
  })
})

describe('selectOperations', () => {
  it('takes full names, packages and operations, in the order of the report', () => {
    expect(selectOperations('transport.put,layout')).toEqual([
      'layout.getDispatchLayout',
      'layout.getRankPrefixMatrix',
      'layout.getChannelPrefixMatrix',
      'transport.put',
    ])
    expect(selectOperations('quant').every((name) => name.startsWith('quant.'))).toBe(true)
    expect(selectOperations('barrier, combine-staged')).toEqual(['intranode-ht.combine-staged', 'rendezvous.barrier'])
  })

  it('names each operation once', () => {
    expect(selectOperations('all,transport,put')).toEqual(operationNames)
    expect(new Set(operationNames).size).toBe(operationNames.length)
  })
})
