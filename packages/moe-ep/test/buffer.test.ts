import { getDevice, Tensor } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import { expect, test } from 'vitest'
import { closeWorld, openWorld } from '../../transport/test/rendezvous/world.js'
import { Buffer } from '../src/buffer.js'

test('two ranks exchange rows through the facade and get the sum over ranks back', async () => {
  const groups = await openWorld(2)
  const sizes = { hidden: 8, maxTokensPerRank: 4 }
  expect(Buffer.sizeHint(sizes, 2)).toBeGreaterThan(2 * 4 * 2 * 16)
  const combined = await Promise.all(
    groups.map(async (group) => {
      using buffer = await Buffer.create(group, sizes)
      expect([buffer.rank, buffer.groupSize]).toEqual([group.rank, 2])
      await using stream = getDevice('cpu').createStream()
      const x = Tensor.from(new Float32Array(16).fill(group.rank + 1), [2, 8], 'bf16', getDevice('cpu'))
      // Token 0 goes to both ranks, token 1 nowhere.
      const topkIdx = Tensor.from([0, 1, -1, -1], [2, 2], 'i64', getDevice('cpu'))
      const layout = buffer.getDispatchLayout(topkIdx, 2, { stream })
      const received = await buffer.dispatch(x, { topkIdx, numExperts: 2, stream })
      const { combinedX } = buffer.combine(received.recvX, received.handle, { stream })
      await stream.synchronize()
      expect(Array.from(layout.numTokensPerRank.toNumbers())).toEqual([1, 1])
      expect(received.recvX.shape).toEqual([2, 8])
      return Array.from(combinedX.toNumbers())
    }),
  )
  const rows = (value: number): number[] => [...new Array<number>(8).fill(value), ...new Array<number>(8).fill(0)]
  expect(combined).toEqual([rows(2), rows(4)])
  await closeWorld(groups)
})

test('with sizes for low latency it has both families, with one device and one deadline', async () => {
  const groups = await openWorld(2)
  const lowLatency = { hidden: 16, maxTokensPerRank: 2, maxTopk: 2 }
  const sizes = { hidden: 8, maxTokensPerRank: 4, lowLatency }
  const { lowLatency: _, ...plain } = sizes
  expect(Buffer.sizeHint(sizes, 2)).toBeGreaterThan(Buffer.sizeHint(plain, 2))
  const device = getDevice('cpu')
  const combined = await Promise.all(
    groups.map(async (group) => {
      using buffer = await Buffer.create(group, { ...sizes, device, timeoutMs: 60_000 })
      expect([buffer.lowLatency.device, buffer.lowLatency.timeoutMs]).toEqual([device, 60_000])
      await using stream = device.createStream()
      const x = Tensor.from(new Float32Array(16).fill(group.rank + 1), [1, 16], 'bf16', device)
      const topkIdx = Tensor.from([0, 1], [1, 2], 'i32', device)
      const weights = Tensor.from([1, 2], [1, 2], 'f32', device)
      buffer.cleanLowLatencyBuffer()
      const { packedRecvX, handle } = buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 2, useFp8: false, stream })
      expect(buffer.getNextLowLatencyCombineBuffer(handle).shape).toEqual(packedRecvX.shape)
      const { combinedX } = buffer.lowLatencyCombine(packedRecvX, topkIdx, weights, handle, { stream })
      await stream.synchronize()
      return Array.from(combinedX.toNumbers())
    }),
  )
  expect(combined).toEqual([3, 6].map((value) => new Array<number>(16).fill(value)))
  await closeWorld(groups)
})

test('without, its calls are refused by name; so are sizes that are wrong, and ranks of which only some have them', async () => {
  const groups = await openWorld(1)
  const [group] = groups as [ProcessGroup]
  using buffer = await Buffer.create(group, { hidden: 8, maxTokensPerRank: 4 })
  const refused = expect.objectContaining({
    code: 'ERR_MOE_EP_UNSUPPORTED',
    message: expect.stringContaining('lowLatency'),
  })
  const x = Tensor.zeros([1, 8], 'bf16')
  const topkIdx = Tensor.zeros([1, 1], 'i32')
  expect(() => buffer.lowLatencyDispatch(x, topkIdx, { numExperts: 1 })).toThrow(refused)
  expect(() => buffer.lowLatency).toThrow(refused)
  const wrong = { hidden: 8, maxTokensPerRank: 4, lowLatency: { hidden: 7, maxTokensPerRank: 2 } }
  await expect(Buffer.create(group, wrong)).rejects.toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT' })
  await closeWorld(groups)
  const two = await openWorld(2)
  const lowLatency = { hidden: 16, maxTokensPerRank: 2 }
  const making = two.map((one) =>
    Buffer.create(one, { hidden: 8, maxTokensPerRank: 4, ...(one.rank === 0 && { lowLatency }) }),
  )
  for (const { status, ...ended } of await Promise.allSettled(making))
    expect([status, ended]).toMatchObject(['rejected', { reason: { code: 'ERR_MOE_EP_MISMATCH' } }])
  await closeWorld(two)
})
