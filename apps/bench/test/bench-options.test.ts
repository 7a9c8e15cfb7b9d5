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
    [['--ops', 'all,'], '--ops'],
  ])('refuses %j', (args, flag) => {
    expect(codeOf(() => parse(...args))).toContain(`ERR_MOE_EP_CONFIG ${flag}`)
  })

  it('refuses a device that it cannot measure', () => {
    expect(codeOf(() => parse('--device', 'cuda'))).toContain('ERR_MOE_EP_UNSUPPORTED --device')
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
