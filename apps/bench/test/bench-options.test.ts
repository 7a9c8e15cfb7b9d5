import { parseArgs } from 'node:util'
import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { benchFlags, type BenchOptions, benchOptionsFrom } from '../src/command/bench-options.js'
import { isBetweenRanks, operationNames, selectOperations } from '../src/command/operation-names.js'

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
    [['--sms', '0'], '--sms'],
    [['--sms', '1025'], '--sms'],
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

  it('selects operations between ranks on every device', () => {
    const { ops, ranks } = parse('--device', 'cuda', '--ranks', '4', '--ops', 'intranode-ht,rendezvous.barrier')
    expect(ranks).toBe(4)
    expect(ops.every(isBetweenRanks)).toBe(true)
    expect(ops).toContain('intranode-ht.combineGrouped-staged')
    expect(parse('--ops', 'layout,quant,deepgemm-permute,enqueue').ops.some(isBetweenRanks)).toBe(false)
  })

  it('takes multiprocessors, or leaves them to the library', () => {
    expect(parse('--device', 'cuda', '--sms', '24').sms).toBe(24)
    expect(parse()).not.toHaveProperty('sms')
  })

  it("draws uniform or skewed routing, which needs half of a token's slots on every rank", () => {
    expect(parse().routing).toBe('uniform')
    expect(parse('--routing', 'skewed').routing).toBe('skewed')
    expect(() => parse('--routing', 'random')).toThrow('--routing')
    expect(() => parse('--routing', 'skewed', '--ranks', '8', '--experts', '16', '--topk', '8')).toThrow('--routing')
    expect(parse('--routing', 'skewed', '--ranks', '1', '--experts', '8', '--topk', '8').routing).toBe('skewed')
  })

  it('draws routing for the ranks that run, or for more', () => {
    expect(parse('--ranks', '3')).toMatchObject({ ranks: 3, world: 3 })
    expect(parse('--ranks', '1', '--world', '8')).toMatchObject({ ranks: 1, world: 8 })
  })

  it('leaves out of all what cannot be measured', () => {
    const prefixes = (...args: string[]): string[] => [
      ...new Set(parse(...args).ops.map((name) => name.split('.')[0]!)),
    ]
    expect(parse().ops).toEqual(operationNames)
    expect(parse('--tokens', '1025').ops).toEqual(operationNames.filter((name) => !name.startsWith('low-latency.')))
    expect(parse('--hidden', '48').ops).toEqual(operationNames.filter((name) => !name.endsWith('-nvfp4')))
    const larger = prefixes('--ranks', '1', '--world', '2')
    expect(larger).toEqual(['layout', 'quant', 'deepgemm-permute', 'transport', 'rendezvous', 'enqueue'])
  })

  it.each([
    [['--device', 'cuda', '--ranks', '4', '--world', '8', '--ops', 'all,combine-staged'], 'only 4 of 8 run'],
    [['--ranks', '1', '--world', '2', '--ops', 'intranode-ht'], 'only 1 of 2 run'],
    [['--tokens', '1025', '--ops', 'low-latency'], 'at most 1024 tokens'],
    [['--hidden', '48', '--ops', 'dispatch-nvfp4'], 'multiples of 32, not for 48'],
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
