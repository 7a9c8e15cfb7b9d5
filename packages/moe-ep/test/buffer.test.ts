import { getDevice, Tensor } from '@moe-ep/core'
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
