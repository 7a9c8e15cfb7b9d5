import { describe, expect, it } from 'vitest'
import { resolveNodes } from '../../src/rendezvous/placement.js'

const host = (key: string) => ({ mode: 'host', key }) as const
const local = (key: string) => ({ mode: 'local', key }) as const
const split = (key: string) => ({ mode: 'split', key }) as const

describe('resolveNodes', () => {
  it('puts ranks of one machine on one node, numbered by lowest rank', () => {
    expect(resolveNodes([host('b'), host('a'), host('b'), host('c')], 'head')).toEqual([0, 1, 0, 2])
    expect(resolveNodes([local('0'), local('0'), local('2'), local('2')], '127.0.0.1')).toEqual([0, 0, 1, 1])
  })

  it.each(['localhost', '127.0.0.1', '127.8.8.8', '::1'])(
    'takes ranks that meet at %s to be on one machine',
    (address) => {
      expect(resolveNodes([host('a'), host('b')], address)).toEqual([0, 0])
    },
  )

  it('splits as asked, also on one machine', () => {
    expect(resolveNodes([split('2'), split('2'), split('2')], '127.0.0.1')).toEqual([0, 0, 1])
  })

  it('refuses ranks that were set up differently, naming the first', () => {
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_MISMATCH', details: { mismatched: 2 } })
    expect(() => resolveNodes([split('2'), split('2'), split('3')], 'head')).toThrow(refused)
    expect(() => resolveNodes([local('0'), local('1'), host('a')], 'head')).toThrow(refused)
  })

  it('refuses an impossible split', () => {
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_PROTOCOL' })
    expect(() => resolveNodes([split('9'), split('9')], 'head')).toThrow(refused)
    expect(() => resolveNodes([split('x'), split('x')], 'head')).toThrow(refused)
  })
})
