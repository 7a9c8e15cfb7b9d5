import { getDevice, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import {
  bytesTensor,
  closeWorld,
  codesOf,
  collectGarbage,
  countDescriptors,
  countMappings,
  createMemory,
  device,
  eventually,
  failureOf,
  noSocketStays,
  onCpu,
  openWorld,
  readBytes,
  thrownBy,
  withMemories,
} from './world.js'

afterAll(noSocketStays)

describe('making a memory', () => {
  test('gives zeroed bytes and signals on every rank, of any size', async () => {
    for (const byteLength of [0, 1, 4095, 4096, 1_000_003]) {
      await withMemories(3, { byteLength, numSignals: 100 }, async (ranks) => {
        for (const { memory } of ranks) {
          expect(memory).toMatchObject({ byteLength, numSignals: 100, device })
          expect(memory.sharing).toBe(onCpu ? 'memfd' : 'vmm')
          expect(Buffer.compare(await readBytes(memory, 0, byteLength), new Uint8Array(byteLength))).toBe(0)
          for (let index = 0; index < 100; index++) expect(memory.signalValue(index)).toBe(0n)
        }
      })
    }
  })

  test('two memories of one group share nothing', async () => {
    await withMemories(2, { byteLength: 8, numSignals: 1 }, async (ranks) => {
      const others = await Promise.all(ranks.map(({ group }) => createMemory(group, { byteLength: 8, numSignals: 1 })))
      const { memory, stream } = ranks[0]!
      memory.put(bytesTensor(Uint8Array.of(7)), { peer: 1, byteOffset: 0, stream })
      memory.signal({ peer: 1, index: 0, value: 3, stream })
      await stream.synchronize()
      expect(ranks[1]!.memory.signalValue(0)).toBe(3n)
      expect(others[1]!.signalValue(0)).toBe(0n)
      expect((await readBytes(others[1]!, 0, 1))[0]).toBe(0)
      for (const other of others) other.close()
    })
  })

  test.each([
    ['bytes', { byteLength: 4096 }, { byteLength: 4097 }, ['4096 bytes', '4097 bytes']],
    ['signals', { byteLength: 1, numSignals: 1 }, { byteLength: 1, numSignals: 2 }, ['1 signals', '2 signals']],
  ])('is refused on every rank when they ask for different %s, and the group goes on', async (_, most, last, texts) => {
    const groups = await openWorld(3)
    const errors = await Promise.all(
      groups.map((group) => failureOf(createMemory(group, group.rank === 2 ? last : most))),
    )
    expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_MISMATCH'))
    for (const { message } of errors) {
      for (const text of [...texts, 'rank 0', 'rank 2']) expect(message).toContain(text)
    }
    const memories = await Promise.all(groups.map((group) => createMemory(group, { byteLength: 16 })))
    for (const memory of memories) memory.close()
    await closeWorld(groups)
  })

  test.each([2 ** 40, 2 ** 50, Number.MAX_SAFE_INTEGER])(
    'of %i bytes is refused on every rank alike, and the group goes on',
    async (byteLength) => {
      const groups = await openWorld(3)
      const errors = await Promise.all(groups.map((group) => failureOf(createMemory(group, { byteLength }))))
      expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_OUT_OF_MEMORY'))
      expect(errors[0]!.message).toContain(String(byteLength))
      await Promise.all(groups.map((group) => group.barrier()))
      await closeWorld(groups)
    },
  )

  test.each([
    ['byteLength', { byteLength: -1 }],
    ['byteLength', { byteLength: 1.5 }],
    ['numSignals', { byteLength: 1, numSignals: -1 }],
    ['numSignals', { byteLength: 1, numSignals: 2 ** 24 + 1 }],
    ['sharing', { byteLength: 1, sharing: 'memfd' as never }],
    ['sharing', { byteLength: 1, sharing: 'vmm' as const, device: getDevice('cpu') }],
  ])('with a bad %s is refused before anything is sent', async (argument, options) => {
    const groups = await openWorld(2)
    const error = await failureOf(createMemory(groups[0]!, options))
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument } })
    await Promise.all(groups.map((group) => group.barrier()))
    await closeWorld(groups)
  })

  test('that one rank never joins ends at the deadline and names that rank', async () => {
    const groups = await openWorld(3)
    const errors = await Promise.all(
      groups.slice(0, 2).map((group) => failureOf(createMemory(group, { byteLength: 1, timeoutMs: 200 }))),
    )
    expect(codesOf(errors)).toEqual(Array(2).fill('ERR_MOE_EP_TIMEOUT'))
    expect(errors[0]!.message).toContain('missing rank: 2')
    await closeWorld(groups)
  })
})

describe('closing', () => {
  test('in any order, while the others still write to and read from the closed rank', async () => {
    const orders = fc.shuffledSubarray([0, 1, 2], { minLength: 3, maxLength: 3 })
    await fc.assert(
      fc.asyncProperty(orders, fc.boolean(), async (order, working) => {
        await withMemories(3, { byteLength: 1 << 20, numSignals: 3 }, async (ranks) => {
          const source = Tensor.zeros([1 << 20], 'u8')
          const write = ({ memory, stream, rank }: (typeof ranks)[0]): void => {
            for (let peer = 0; peer < 3; peer++) {
              memory.put(source, { peer, byteOffset: 0, stream })
              memory.signal({ peer, index: rank, value: 1, stream })
            }
          }
          for (const closed of order) {
            if (working)
              for (const each of ranks) if (!order.slice(0, order.indexOf(closed)).includes(each.rank)) write(each)
            ranks[closed]!.memory.close()
            ranks[closed]!.memory.close()
            const rest = ranks.filter(({ rank }) => order.indexOf(rank) > order.indexOf(closed))
            for (const each of rest) {
              write(each)
              expect((await readBytes(each.memory, 0, 1 << 20, closed))[123]).toBe(0)
            }
          }
          await Promise.all(ranks.map(({ stream }) => stream.synchronize()))
        })
        await eventually(() => countMappings() === 0, 'all is unmapped')
      }),
      { numRuns: 12 },
    )
  })

  test('detaches what JavaScript saw of it, and refuses every later use', async () => {
    await withMemories(2, { byteLength: 64, numSignals: 1 }, async ([first]) => {
      const { memory, stream } = first!
      const view = memory.tensor({ byteOffset: 0, shape: [64], dtype: 'u8' })
      const bytes = onCpu ? view.data : undefined
      memory.close()
      if (bytes !== undefined) expect(bytes.byteLength).toBe(0)
      const source = Tensor.zeros([1], 'u8')
      for (const call of [
        () => view.data,
        () => memory.routes,
        () => memory.tensor({ byteOffset: 0, shape: [1], dtype: 'u8' }),
        () => memory.put(source, { peer: 1, byteOffset: 0, stream }),
        () => memory.put(view, { peer: 1, byteOffset: 0, stream }),
        () => memory.signal({ peer: 1, index: 0, value: 1, stream }),
        () => memory.atomicAdd({ peer: 1, index: 0, delta: 1, stream }),
        () => memory.wait({ index: 0, value: 1, stream }),
        () => memory.signalValue(0),
        () => memory.poison(thrownBy(() => memory.routes)),
      ]) {
        expect(thrownBy(call).code).toBe('ERR_MOE_EP_RELEASED')
      }
      expect(memory.failure).toBeUndefined()
      await stream.synchronize()
    })
  })

  test('lets queued work finish: what was put before arrives', async () => {
    await withMemories(2, { byteLength: 8, numSignals: 1 }, async ([first, second]) => {
      first!.stream.delay(20_000)
      first!.memory.put(bytesTensor(Uint8Array.of(5)), { peer: 1, byteOffset: 3, stream: first!.stream })
      first!.memory.signal({ peer: 1, index: 0, value: 1, stream: first!.stream })
      first!.memory.close()
      second!.memory.wait({ index: 0, value: 1, stream: second!.stream })
      await second!.stream.synchronize()
      expect((await readBytes(second!.memory, 3, 1))[0]).toBe(5)
    })
  })

  test('of groups before memories and of memories before groups both work', async () => {
    const groups = await openWorld(2)
    const memories = await Promise.all(groups.map((group) => createMemory(group, { byteLength: 8, numSignals: 1 })))
    await closeWorld(groups)
    await using stream = device.createStream({ threads: 1 })
    memories[0]!.signal({ peer: 1, index: 0, value: 4, stream })
    await stream.synchronize()
    expect(memories[1]!.signalValue(0)).toBe(4n)
    for (const memory of memories) memory.close()
  })
})

describe('nothing stays behind', () => {
  test('after 50 memories: no descriptor and no mapping', async () => {
    const groups = await openWorld(2)
    const make = async (): Promise<void> => {
      const memories = await Promise.all(
        groups.map((group) => createMemory(group, { byteLength: 10_000, numSignals: 3 })),
      )
      for (const memory of memories) memory.close()
    }
    await make()
    await collectGarbage()
    const before = countDescriptors()
    for (let i = 0; i < 50; i++) await make()
    await collectGarbage()
    await eventually(() => countMappings() === 0, 'all is unmapped')
    await eventually(() => countDescriptors() <= before, `${before} descriptors again`)
    expect(countMappings()).toBe(0)
    await closeWorld(groups)
  })

  test('after memories that nobody closed: the collector unmaps them once their group is closed', async () => {
    const before = countMappings()
    const groups = await openWorld(2)
    await Promise.all(groups.map((group) => createMemory(group, { byteLength: 10_000 })))
    expect(countMappings()).toBeGreaterThan(before)
    await closeWorld(groups)
    groups.length = 0
    for (let tries = 0; tries < 50 && countMappings() > before; tries++) await collectGarbage()
    expect(countMappings()).toBe(before)
  })

  test('after tensors that are still queued were dropped: work uses their bytes until it is done', async () => {
    await withMemories(2, { byteLength: 1 << 20, numSignals: 1 }, async ([first, second]) => {
      const { memory, stream } = first!
      stream.delay(20_000)
      for (let i = 0; i < 20; i++) {
        const source = bytesTensor(new Uint8Array(50_000).fill(i + 1))
        memory.put(source, { peer: 1, byteOffset: i * 50_000, stream })
      }
      await collectGarbage()
      await collectGarbage()
      await stream.synchronize()
      const bytes = await readBytes(second!.memory, 0, 1_000_000)
      for (let i = 0; i < 20; i++)
        expect(bytes.subarray(i * 50_000, (i + 1) * 50_000).every((byte) => byte === i + 1)).toBe(true)
    })
  })
})
