import { getDevice } from '@moe-ep/core'
import { GroupedExperts, referenceEngines, type WorkspaceShapes } from '@moe-ep/experts'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { failureOf, rowsOnHost } from '../../intranode-ht/test/world.js'
import { LocalPrepareAndFinalize, ModularKernel, WorkspaceManager } from '../src/index.js'
import { Layer } from './layer.js'

const device = getDevice('cpu')
const stream = device.createStream({ threads: 1 })
afterAll(() => stream.close())

const shapes = (first: number, second: number, output: number): WorkspaceShapes => ({
  workspace13: { dtype: 'u8', shape: [first] },
  workspace2: { dtype: 'u8', shape: [second] },
  output: { dtype: 'f32', shape: [output] },
})

describe('WorkspaceManager', () => {
  test('puts the output on top of the first workspace, and the second apart', () => {
    const lease = new WorkspaceManager().enter({ device, microBatch: 0, stream })
    for (const one of [shapes(64, 8, 2), shapes(8, 8, 64)]) {
      const { workspace13, workspace2, output } = lease.takeAll(one)
      expect([workspace13.numel, workspace2.numel, output.numel]).toEqual([
        one.workspace13.shape[0],
        8,
        one.output.shape[0],
      ])
      expect(output.memory).toBe(workspace13.memory)
      expect(workspace2.memory).not.toBe(output.memory)
    }
    const { workspace13, workspace2 } = lease.takeScratch(shapes(64, 8, 2))
    const apart = lease.takeOutput({ dtype: 'f32', shape: [2] })
    expect(new Set([workspace13.memory, workspace2.memory, apart.memory]).size).toBe(3)
    lease.leave()
  })

  test('keeps memory from call to call, and grows only when it must', () => {
    const manager = new WorkspaceManager()
    const memories = [64, 16, 65, 65].map((bytes) => {
      const lease = manager.enter({ device, microBatch: 0, stream })
      const { workspace13 } = lease.takeAll(shapes(bytes, 0, 0))
      lease.leave()
      return workspace13.memory
    })
    expect(memories[1]).toBe(memories[0])
    expect(memories[2]).not.toBe(memories[0])
    expect(memories[3]).toBe(memories[2])
    expect(manager.byteLength).toBe(65)
  })

  test('gives micro-batches memory of their own, and one of them to one layer at a time', () => {
    const manager = new WorkspaceManager()
    const [first, second] = [0, 1].map((microBatch) => manager.enter({ device, microBatch, stream }))
    const memories = [first!, second!].map((lease) => lease.takeAll(shapes(8, 0, 0)).workspace13.memory)
    expect(memories[0]).not.toBe(memories[1])
    const again = (): unknown => manager.enter({ device, microBatch: 1, stream })
    expect(again).toThrow(expect.objectContaining({ details: { argument: 'microBatch' } }))
    second!.leave()
    again()
  })

  test('orders a stream after the last one that used the memory', async () => {
    const manager = new WorkspaceManager()
    const other = device.createStream({ threads: 1 })
    const lease = manager.enter({ device, microBatch: 0, stream })
    stream.delay(20_000)
    const used = stream.record()
    lease.leave()
    manager.enter({ device, microBatch: 0, stream: other })
    await other.synchronize()
    expect(used.query()).toBe(true)
    await other.close()
  })
})

describe('a kernel', () => {
  const layer = new Layer({
    numTokens: [40],
    hidden: 64,
    intermediate: 8,
    numExperts: 4,
    topk: 2,
    seed: 3,
    weightDtype: 'bf16',
  })

  test('allocates nothing large once it is warm', async () => {
    const experts = new GroupedExperts(referenceEngines())
    const kernel = new ModularKernel(new LocalPrepareAndFinalize(), experts)
    const args = { ...layer.argumentsOf(0), stream }
    const output = await kernel.apply(args)
    await stream.synchronize()
    output.data.fill(0 as never)
    const allocate = vi.spyOn(device, 'allocate')
    const kept = kernel.workspaces.byteLength
    expect(await kernel.apply({ ...args, output })).toBe(output)
    await stream.synchronize()
    const largest = Math.max(...allocate.mock.calls.map(([bytes]) => bytes as number))
    allocate.mockRestore()
    expect(largest).toBeLessThan(output.byteLength / 4)
    expect(kernel.workspaces.byteLength).toBe(kept)
    expect(rowsOnHost(output)).toEqual(layer.expectedOf(0))
    await experts.close()
  })

  test('in chunks keeps less', async () => {
    const bytes: number[] = []
    for (const options of [{}, { maxRowsPerChunk: 4 }]) {
      const experts = new GroupedExperts(referenceEngines())
      const kernel = new ModularKernel(new LocalPrepareAndFinalize(), experts, options)
      const output = await kernel.apply({ ...layer.argumentsOf(0), stream })
      await stream.synchronize()
      expect(rowsOnHost(output)).toEqual(layer.expectedOf(0))
      bytes.push(kernel.workspaces.byteLength)
      await experts.close()
    }
    expect(bytes[1]!).toBeLessThan(bytes[0]! / 2)
  })

  test('layers that share scratch and a micro-batch run one after another, others side by side', async () => {
    const workspaces = new WorkspaceManager()
    const experts = new GroupedExperts(referenceEngines())
    const kernels = [0, 1].map(() => new ModularKernel(new LocalPrepareAndFinalize(), experts, { workspaces }))
    const args = layer.argumentsOf(0)
    const first = kernels[0]!.apply({ ...args, stream })
    expect((await failureOf(kernels[1]!.apply({ ...args, stream }))).details['argument']).toBe('microBatch')
    const side = kernels[1]!.apply({ ...args, stream, microBatch: 1 })
    const outputs = await Promise.all([first, side])
    outputs.push(await kernels[1]!.apply({ ...args, stream }))
    await stream.synchronize()
    for (const output of outputs) expect(rowsOnHost(output)).toEqual(layer.expectedOf(0))
    await experts.close()
  })

  test('refuses an output that does not fit', async () => {
    const experts = new GroupedExperts(referenceEngines())
    const kernel = new ModularKernel(new LocalPrepareAndFinalize(), experts)
    const args = layer.argumentsOf(0)
    const output = args.hiddenStates.slice(0, 3)
    expect((await failureOf(kernel.apply({ ...args, output }))).details['argument']).toBe('output')
  })
})
