import { describe, expect, it } from 'vitest'
import { resolveConnectOptions } from '../../src/rendezvous/connect-options.js'

const launched = {
  ...{ RANK: '2', WORLD_SIZE: '4', MASTER_ADDR: 'head', MASTER_PORT: '29500' },
  MOE_EP_SECRET: '0123456789abcdef',
}

describe('resolveConnectOptions', () => {
  it('is a world of one without any option or variable', () => {
    expect(resolveConnectOptions({ environment: {} })).toMatchObject({ rank: 0, worldSize: 1, timeoutMs: 30_000 })
  })

  it('reads what launchers set', () => {
    const environment = { ...launched, MOE_EP_TIMEOUT_MS: '1500', MOE_EP_NODES: '2' }
    expect(resolveConnectOptions({ environment })).toMatchObject({
      ...{ rank: 2, worldSize: 4, host: 'head', port: 29_500, secret: '0123456789abcdef', timeoutMs: 1500 },
      placement: { mode: 'split', key: '2' },
    })
  })

  it('prefers options to variables', () => {
    const options = { rank: 1, worldSize: 3, host: '[::1]', port: 7, secret: 'x'.repeat(16), nodes: 3, timeoutMs: 9 }
    expect(resolveConnectOptions({ ...options, environment: { ...launched, MOE_EP_NODES: '2' } })).toMatchObject({
      ...{ rank: 1, worldSize: 3, host: '::1', port: 7, timeoutMs: 9 },
      placement: { mode: 'split', key: '3' },
    })
  })

  it.each([
    [{ LOCAL_WORLD_SIZE: '2' }, '2'],
    [{ LOCAL_WORLD_SIZE: '3', LOCAL_RANK: '2' }, '0'],
    [{ LOCAL_WORLD_SIZE: '4' }, '0'],
  ])('groups ranks by machine from %j: the machine of rank 2 begins at rank %s', (variables, key) => {
    const { placement } = resolveConnectOptions({ environment: { ...launched, ...variables } })
    expect(placement).toEqual({ mode: 'local', key })
  })

  it('takes the local rank from an option alone, and ignores LOCAL_RANK alone', () => {
    expect(resolveConnectOptions({ localRank: 1, environment: launched }).placement).toEqual({
      mode: 'local',
      key: '1',
    })
    expect(resolveConnectOptions({ environment: { ...launched, LOCAL_RANK: '0' } }).placement.mode).toBe('host')
  })

  it('treats empty variables as absent', () => {
    const environment = { ...launched, MOE_EP_NODES: '', MOE_EP_TIMEOUT_MS: '', MASTER_ADDR: '' }
    expect(resolveConnectOptions({ environment })).toMatchObject({ host: '127.0.0.1', timeoutMs: 30_000 })
  })

  it.each([
    ['RANK', '4'],
    ['RANK', '-1'],
    ['RANK', '1e0'],
    ['RANK', ''],
    ['WORLD_SIZE', '0'],
    ['WORLD_SIZE', '99999999999999999999'],
    ['MASTER_PORT', '65536'],
    ['MASTER_PORT', ''],
    ['MOE_EP_SECRET', 'short'],
    ['MOE_EP_SECRET', ''],
    ['MOE_EP_NODES', '5'],
    ['MOE_EP_TIMEOUT_MS', '0'],
    ['LOCAL_WORLD_SIZE', 'many'],
  ])('refuses %s=%j as a configuration error that names it', (variable, value) => {
    const expected = expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringContaining(variable) })
    expect(() => resolveConnectOptions({ environment: { ...launched, [variable]: value } })).toThrow(expected)
  })

  it('refuses LOCAL_RANK beyond the rank, and RANK without WORLD_SIZE', () => {
    const refused = expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG' })
    const environment = { ...launched, LOCAL_WORLD_SIZE: '4', LOCAL_RANK: '3' }
    expect(() => resolveConnectOptions({ environment })).toThrow(refused)
    expect(() => resolveConnectOptions({ environment: { RANK: '3' } })).toThrow(refused)
  })

  it.each([
    ['rank', { rank: 4 }],
    ['rank', { rank: '1' as unknown as number }],
    ['worldSize', { worldSize: 4097 }],
    ['port', { port: 0 }],
    ['host', { host: '' }],
    ['secret', { secret: 'fifteen bytes..' }],
    ['nodes', { nodes: 0 }],
    ['localRank', { localRank: 3 }],
    ['timeoutMs', { timeoutMs: 2 ** 31 }],
    ['timeoutMs', { timeoutMs: Number.NaN }],
    ['maxFrameBytes', { maxFrameBytes: 1 }],
  ])('refuses a bad option %s as an argument error', (argument, options) => {
    const expected = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } })
    expect(() => resolveConnectOptions({ ...options, environment: launched })).toThrow(expected)
  })

  it('never shows the secret', () => {
    try {
      resolveConnectOptions({ secret: 'fifteen bytes..', environment: launched })
      expect.unreachable()
    } catch (error) {
      expect(JSON.stringify(error)).not.toContain('fifteen')
    }
  })
})
