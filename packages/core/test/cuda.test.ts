import { closeSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { requires } from '../../../tooling/vitest/requirements.js'
import {
  copyTensor,
  type CudaDevice,
  exportMemory,
  getCudaDeviceOfRank,
  getDevice,
  ipcHandle,
  listDevices,
  Tensor,
  wrapPointer,
} from '../src/index.js'
import { rejection } from './support.js'

const cpu = getDevice('cpu')
const refusal = expect.objectContaining({ code: 'ERR_MOE_EP_ARGUMENT' })
const hasGpu = requires('cuda', () => {
  const gpu = listDevices().find(({ name, available }) => name === 'cuda:0' && available)
  return gpu !== undefined || (listDevices().at(-1)?.reason ?? 'no reason')
})
const hasTwoGpus = requires('two GPUs', () => {
  const gpus = listDevices().filter(({ name, available }) => name.startsWith('cuda:') && available)
  return gpus.length > 1 || `there are ${gpus.length}`
})
const device = hasGpu ? getDevice('cuda:0') : (undefined as unknown as CudaDevice)

const numbers = (count: number): Tensor =>
  Tensor.copyOf(
    Int32Array.from({ length: count }, (_, i) => i),
    [count],
    'i32',
    device,
  )
const isCounting = (values: ArrayLike<number | bigint>): boolean =>
  Array.prototype.every.call(values, (value: number, i: number) => value === i)

describe.skipIf(!hasGpu)('a cuda device', () => {
  test('is one object a GPU, with its facts', () => {
    expect(getDevice('cuda:0')).toBe(device)
    expect([device.kind, device.ordinal, String(device)]).toEqual(['cuda', 0, 'cuda:0'])
    expect(device.memoryBytes).toBeGreaterThan(1e9)
    expect(device.multiprocessors).toBeGreaterThan(1)
    expect(getCudaDeviceOfRank({ localRank: 0, localWorldSize: 1 })).toBe(device)
    const crowd = { localRank: 98, localWorldSize: 99 }
    expect(() => getCudaDeviceOfRank(crowd)).toThrow(expect.objectContaining({ code: 'ERR_MOE_EP_NO_DEVICE' }))
    expect(getCudaDeviceOfRank({ ...crowd, shareGpus: true }).kind).toBe('cuda')
  })

  test('memory is reused once the work that uses it is done, and not before', async () => {
    await using stream = device.createStream()
    const source = numbers(1 << 20)
    const copies: Tensor[] = []
    for (let i = 0; i < 50; i++) {
      const garbage = Tensor.empty([1 << 20], 'i32', device)
      stream.delay(100)
      copyTensor(source, garbage, { stream })
      const copy = Tensor.empty([1 << 20], 'i32', device)
      copyTensor(garbage, copy, { stream })
      garbage.memory.close()
      // Would overwrite the garbage before it was copied, if it were handed out again too early.
      Tensor.zeros([1 << 20], 'i32', device).memory.close()
      copies.push(copy)
    }
    for (const copy of copies) expect(isCounting(await copy.read({ stream }))).toBe(true)
    const { usedBytes } = device.memoryUse
    for (let i = 0; i < 1000; i++) Tensor.empty([1 << 20], 'i32', device).memory.close()
    await stream.synchronize()
    device.allocate(1)
    expect(device.memoryUse.usedBytes).toBeLessThan(usedBytes + 100 * 2 ** 22)
  })

  test('more memory than there is says how much was asked for', () => {
    const failure = {
      code: 'ERR_MOE_EP_OUT_OF_MEMORY',
      message: expect.stringContaining('10000000000000 bytes on cuda:0'),
    }
    expect(() => device.allocate(1e13)).toThrow(expect.objectContaining(failure))
  })

  test('its bytes are not for JavaScript, and wrapping host memory is refused', () => {
    const tensor = Tensor.zeros([4], 'f32', device)
    const unsupported = expect.objectContaining({ code: 'ERR_MOE_EP_UNSUPPORTED' })
    expect(() => tensor.data).toThrow(unsupported)
    expect(() => tensor.memory.arrayBuffer).toThrow(unsupported)
    expect(() => Tensor.wrap(new Float32Array(4), [4], 'f32', device)).toThrow(refusal)
  })

  test('pinned memory is memory of the host that copies use directly', async () => {
    const pinned = new Tensor({ memory: device.allocatePinned(cpu, 4000), dtype: 'i32', shape: [1000] })
    expect(pinned.device).toBe(cpu)
    expect(() => device.allocatePinned(device, 4000)).toThrow(refusal)
    copyTensor(numbers(1000), pinned)
    await device.defaultStream.synchronize()
    expect(isCounting(pinned.data as Int32Array)).toBe(true)
  })

  test('foreign pointers and streams are used in place', async () => {
    const owner = numbers(1000)
    const part = new Tensor({ memory: wrapPointer(device, owner.pointer + 400n, 400), dtype: 'i32', shape: [100] })
    expect([...(await part.read())].slice(0, 3)).toEqual([100, 101, 102])
    await using own = device.createStream()
    await using foreign = device.wrapStream(own.cudaHandle)
    const target = Tensor.zeros([1000], 'i32', device)
    foreign.delay(2000)
    copyTensor(owner, target, { stream: foreign })
    expect(isCounting(await target.read({ stream: own }))).toBe(true)
    await using legacy = device.wrapStream(0n)
    legacy.delay(10)
    await legacy.synchronize()
  })

  test('exported memory is the same bytes through a descriptor, and outlives its exporter', async () => {
    const exported = device.allocateExportable(3_000_000)
    const descriptor = exportMemory(exported)
    const imported = device.importMemory(descriptor, 3_000_000)
    closeSync(descriptor)
    copyTensor(numbers(1000), new Tensor({ memory: exported, dtype: 'i32', shape: [1000] }))
    const view = new Tensor({ memory: imported, dtype: 'i32', shape: [1000] })
    expect(isCounting(await view.read())).toBe(true)
    exported.close()
    expect(isCounting(await view.read())).toBe(true)
    expect(() => exportMemory(device.allocate(8))).toThrow(refusal)
    expect(() => exportMemory(cpu.allocate(8))).toThrow(refusal)
  })

  test('says what the driver has left, and names the GPU as the driver does', () => {
    expect(device.uuid).toMatch(/^GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
    expect(device.freeBytes).toBeGreaterThan(0)
    expect(device.freeBytes).toBeLessThan(device.memoryBytes)
    expect(typeof device.canExport).toBe('boolean')
  })

  test('memory for ipc is the same bytes through its handle, and stays while it is mapped', async () => {
    const words = cpu.allocate(8)
    const mappings = { memory: words, byteOffset: 4 }
    const count = new Uint32Array(words.arrayBuffer)
    const owned = device.allocateIpc(3_000_000, mappings)
    const handle = ipcHandle(owned)
    const opened = device.openIpc(handle, 3_000_000, mappings)
    expect([...count]).toEqual([0, 1])
    copyTensor(numbers(1000), new Tensor({ memory: owned, dtype: 'i32', shape: [1000] }))
    const view = new Tensor({ memory: opened, dtype: 'i32', shape: [1000] })
    expect(isCounting(await view.read())).toBe(true)
    owned.close()
    expect(isCounting(await view.read())).toBe(true)
    opened.close()
    for (let looks = 0; looks < 100_000 && count[1] !== 0; looks++) void device.memoryUse
    expect([...count]).toEqual([0, 0])
    expect(() => device.openIpc(handle, 3_000_000, mappings)).toThrow(refusal)
    expect(() => device.openIpc(handle.subarray(1), 8, mappings)).toThrow(refusal)
    expect(() => device.allocateIpc(8, { memory: words, byteOffset: 6 })).toThrow(refusal)
    expect(() => ipcHandle(device.allocate(8))).toThrow(refusal)
    words.close()
    expect(() => device.allocateIpc(8, mappings)).toThrow(expect.objectContaining({ code: expect.any(String) }))
  })

  test('peers are other cuda devices', () => {
    expect(() => device.canAccessPeer(cpu)).toThrow(refusal)
    expect(() => device.enablePeerAccess(cpu)).toThrow(refusal)
  })

  test.skipIf(!hasTwoGpus)('peers use memory of one another once they may, and to allow it again is fine', async () => {
    const peer = getDevice('cuda:1')
    expect([device.canAccessPeer(peer), peer.canAccessPeer(device)]).toEqual([true, true])
    for (let i = 0; i < 2; i++) {
      device.enablePeerAccess(peer)
      peer.enablePeerAccess(device)
    }
    const owner = Tensor.zeros([1000], 'i32', peer)
    const there = new Tensor({ memory: wrapPointer(device, owner.pointer, 4000), dtype: 'i32', shape: [1000] })
    copyTensor(numbers(1000), there)
    await device.defaultStream.synchronize()
    expect(isCounting(await owner.read())).toBe(true)
    expect(isCounting(await there.read())).toBe(true)
  })

  test('work and failures are ordered between the cpu and the GPU, both ways', async () => {
    await using host = cpu.createStream()
    await using stream = device.createStream()
    const value = Tensor.zeros([1], 'i32', device)
    const [before, after] = [Tensor.from([7], [1], 'i32', cpu), Tensor.zeros([1], 'i32', cpu)]
    host.delay(5000)
    copyTensor(before, after, { stream: host })
    stream.wait(host.record())
    copyTensor(after, value, { stream })
    expect([...(await value.read({ stream }))]).toEqual([7])

    const back = Tensor.zeros([1], 'i32', cpu)
    const pinned = new Tensor({ memory: device.allocatePinned(cpu, 4), dtype: 'i32', shape: [1] })
    stream.delay(5000)
    copyTensor(value, pinned, { stream })
    host.wait(stream.record())
    copyTensor(pinned, back, { stream: host })
    await host.synchronize()
    expect(back.data[0]).toBe(7)

    host.fail('ERR_MOE_EP_CAPACITY', 'on the cpu')
    stream.wait(host.record())
    expect((await rejection(stream.synchronize())).message).toBe('on the cpu')
    expect((await rejection(host.synchronize())).message).toBe('on the cpu')
    stream.fail('ERR_MOE_EP_CAPACITY', 'on the GPU')
    host.wait(stream.record())
    expect((await rejection(host.synchronize())).message).toBe('on the GPU')
    expect((await rejection(stream.synchronize())).message).toBe('on the GPU')
  })

  test('times of events are those of the machine and their differences exact', async () => {
    await using stream = device.createStream()
    for (const delayUs of [100, 3000]) {
      const begin = stream.record()
      stream.delay(delayUs)
      const end = stream.record()
      await stream.synchronize()
      const nowUs = Number(process.hrtime.bigint()) / 1000
      expect(end.completedAtUs - begin.completedAtUs).toBeGreaterThanOrEqual(delayUs - 1)
      expect(end.completedAtUs).toBeLessThanOrEqual(nowUs + 1000)
      expect(end.completedAtUs).toBeGreaterThan(nowUs - 10_000_000)
    }
  })
})
