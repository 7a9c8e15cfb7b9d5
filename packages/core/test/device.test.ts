import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { getCudaDeviceOfRank, getDefaultDevice, getDevice, listDevices } from '../src/index.js'
import { runProgram, useCopies } from './support.js'

const cpu = getDevice('cpu')
afterEach(() => vi.unstubAllEnvs())

describe('devices', () => {
  test('the cpu is there, and one object stands for it', () => {
    expect(listDevices()[0]).toEqual({ name: 'cpu', available: true })
    expect(getDevice('cpu')).toBe(cpu)
    expect([cpu.name, cpu.kind, String(cpu)]).toEqual(['cpu', 'cpu', 'cpu'])
  })

  test('a cuda device that is not there is a plain no with the reason, other names are errors', () => {
    expect(listDevices().length).toBeGreaterThanOrEqual(2)
    for (const { name, available, reason } of listDevices().slice(1)) {
      expect(name).toMatch(/^cuda(:\d+)?$/)
      expect(available ? undefined : reason).toEqual(available ? undefined : expect.stringMatching(/\w/))
    }
    const missing = expect.objectContaining({
      code: 'ERR_MOE_EP_NO_DEVICE',
      message: expect.stringMatching(/^cuda:99: ./),
    })
    expect(() => getDevice('cuda:99')).toThrow(missing)
    expect(() => getCudaDeviceOfRank({ localRank: 0, localWorldSize: 99 })).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_NO_DEVICE' }),
    )
    for (const place of [
      { localRank: 2, localWorldSize: 2 },
      { localRank: -1, localWorldSize: 2 },
      { localRank: 0, localWorldSize: 0 },
    ])
      expect(() => getCudaDeviceOfRank(place)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
    for (const name of ['cuda', 'cuda:', 'cuda:-1', 'cuda:x', 'CPU', '', 'gpu']) {
      expect(() => getDevice(name)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' }))
    }
  })

  test('the default stream stays the same until it is closed', async () => {
    const first = cpu.defaultStream
    expect(cpu.defaultStream).toBe(first)
    await first.close()
    const second = cpu.defaultStream
    expect(second).not.toBe(first)
    second.delay(1)
    await second.synchronize()
  })

  test.each<[Record<string, string | undefined>, number]>([
    [{}, availableParallelism()],
    [{ MOE_EP_CPU_THREADS: '3' }, 3],
    [{ MOE_EP_CPU_THREADS: '100000' }, 256],
    [{ MOE_EP_CPU_THREADS: '' }, availableParallelism()],
    [{ WORLD_SIZE: '100000' }, 1],
    [{ WORLD_SIZE: '100000', LOCAL_WORLD_SIZE: '1' }, availableParallelism()],
    [{ WORLD_SIZE: 'x' }, availableParallelism()],
  ])('threads of a stream follow from %j', async (environment, threads) => {
    for (const name of ['MOE_EP_CPU_THREADS', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE']) vi.stubEnv(name, environment[name])
    await using stream = cpu.createStream()
    expect(stream.threads).toBe(Math.min(threads, 256))
    await using chosen = cpu.createStream({ threads: 2 })
    expect(chosen.threads).toBe(2)
  })

  test.each(['0', '-1', '1.5', '1e3', 'many', ' 2'])('MOE_EP_CPU_THREADS=%s is refused by name', (threads) => {
    vi.stubEnv('MOE_EP_CPU_THREADS', threads)
    expect(() => cpu.createStream()).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringMatching(/^MOE_EP_CPU_THREADS: /) }),
    )
  })

  test('MOE_EP_DEVICE names the default device; what is no name is refused', () => {
    vi.stubEnv('MOE_EP_DEVICE', '')
    expect(getDefaultDevice()).toBe(cpu)
    vi.stubEnv('MOE_EP_DEVICE', 'gpu')
    expect(getDefaultDevice).toThrow(
      expect.objectContaining({ code: 'ERR_MOE_EP_CONFIG', message: expect.stringMatching(/^MOE_EP_DEVICE: .*"gpu"/) }),
    )
    vi.stubEnv('MOE_EP_DEVICE', 'cuda:99')
    expect(getDefaultDevice).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_NO_DEVICE' }))
  })
})

describe('without its native part', () => {
  const copy = useCopies(['bare'], ['dist', 'package.json'])

  test('core loads, lists the device with the reason, and refuses it with what to do', async () => {
    const output = await runProgram(`
      import { encode, getDevice, listDevices, Tensor } from ${JSON.stringify(pathToFileURL(join(copy('bare'), 'dist/index.js')).href)}
      const failure = (run) => { try { run() } catch ({ code, message }) { return { code, message } } }
      console.log(JSON.stringify({
        devices: listDevices(),
        device: failure(() => getDevice('cpu')),
        tensor: failure(() => Tensor.zeros([1], 'f32')),
        encoded: [...encode('bf16', [1])],
      }))
    `)
    const { devices, device, tensor, encoded } = JSON.parse(output) as Record<string, never>
    expect(devices).toEqual(
      ['cpu', 'cuda'].map((name) => ({ name, available: false, reason: expect.stringContaining('moe_ep_core.node') })),
    )
    expect(device).toEqual({
      code: 'ERR_MOE_EP_NO_DEVICE',
      message: expect.stringMatching(/Reinstall @moe-ep\/core.*npm run build/s),
    })
    expect(tensor).toMatchObject({ code: 'ERR_MOE_EP_NO_DEVICE' })
    expect(encoded).toEqual([0x3f80])
  })
})
