import { setTimeout as sleep } from 'node:timers/promises'
import { copyTensor, type CudaDevice, getDevice, Graph, MoeEpError, Tensor } from '@moe-ep/core'
import fc from 'fast-check'
import { afterEach, describe, expect, test } from 'vitest'
import { requires } from '../../../../tooling/vitest/requirements.js'
import type { SharingChoice } from '../../src/index.js'
import { endsOf, launch, type RunningRank } from './launch.js'
import {
  bytesTensor,
  closeWorld,
  codesOf,
  countMappings,
  createMemory,
  device,
  eventually,
  failureOf,
  type MemoryRank,
  openWorld,
  readBytes,
  thrownBy,
  withMemories,
} from './world.js'

// What is there on a GPU only; all else runs on it, too, when MOE_EP_DEVICE names it.
const onCuda = requires('cuda', () => device.kind === 'cuda' || 'MOE_EP_DEVICE names no GPU')

const script = new URL('fixtures/rank.mjs', import.meta.url)
let running: RunningRank[] = []
afterEach(async () => {
  for (const rank of running) rank.kill()
  await endsOf(running)
  running = []
})

/** Work of the device itself, which needs no peer. */
async function expectDeviceWorks(): Promise<void> {
  await using stream = device.createStream()
  const copy = Tensor.zeros([4], 'u8', device)
  copyTensor(bytesTensor(Uint8Array.of(1, 2, 3, 4)), copy, { stream })
  expect([...((await copy.read({ stream })) as Uint8Array)]).toEqual([1, 2, 3, 4])
}

function writeToAll({ memory, stream, rank }: MemoryRank, value: number, bytes: number): void {
  const source = bytesTensor(new Uint8Array(bytes).fill(value))
  for (let peer = 0; peer < memory.group.worldSize; peer++) {
    memory.put(source, { peer, byteOffset: rank * bytes, stream })
    memory.signal({ peer, index: rank, value, stream })
  }
}

describe.skipIf(!onCuda).each<SharingChoice>(['vmm', 'ipc'])('memory of a GPU that is shared by %s', (sharing) => {
  test('says so, and brings what every rank sends to every rank', async () => {
    await withMemories(4, { byteLength: 4000, numSignals: 4, sharing }, async (ranks) => {
      for (const each of ranks) writeToAll(each, 1 + each.rank, 1000)
      for (const { memory, stream } of ranks) {
        expect(memory.sharing).toBe(sharing)
        for (let index = 0; index < 4; index++) memory.wait({ index, value: 1 + index, stream })
        await stream.synchronize()
        const expected = Uint8Array.from({ length: 4000 }, (_, i) => 1 + Math.floor(i / 1000))
        expect(Buffer.compare(await readBytes(memory, 0, 4000), expected)).toBe(0)
      }
    })
  })

  test('can be closed in any order, while others still use what was closed', async () => {
    const orders = fc.shuffledSubarray([0, 1, 2], { minLength: 3, maxLength: 3 })
    await fc.assert(
      fc.asyncProperty(orders, async (order) => {
        await withMemories(3, { byteLength: 3 << 20, numSignals: 3, sharing }, async (ranks) => {
          for (const [step, closed] of order.entries()) {
            ranks[closed]!.memory.close()
            for (const rank of order.slice(step + 1)) {
              writeToAll(ranks[rank]!, 1 + step, 1 << 20)
              await ranks[rank]!.stream.synchronize()
              const theirs = await readBytes(ranks[rank]!.memory, rank << 20, 1 << 20, closed)
              expect(theirs.every((byte) => byte === 1 + step)).toBe(true)
            }
          }
        })
        await eventually(() => countMappings() === 0, 'all is unmapped')
      }),
      { numRuns: 6 },
    )
  })

  test('is given back to the GPU once all ranks have closed', async () => {
    const gpu = device as CudaDevice
    const byteLength = Math.floor(gpu.memoryBytes / 16)
    // All of them together are more than the GPU has.
    for (let round = 0; round < 12; round++) {
      await eventually(() => gpu.freeBytes > 3 * byteLength, 'there is room')
      await withMemories(2, { byteLength, sharing }, async (ranks) => {
        expect(ranks.map(({ memory }) => memory.byteLength)).toEqual([byteLength, byteLength])
      })
    }
  })
})

test.skipIf(!onCuda)('ranks in other processes map memory by ipc, also when its owner has closed', async () => {
  running = await launch({ numRanks: 3, script, scenario: 'closeInTurnIpc' })
  expect(await endsOf(running)).toEqual([0, 0, 0])
  for (const { events } of running) {
    expect(events).toEqual([{ event: 'done', wrong: 0, sharing: 'ipc', mappings: 0 }])
  }
})

describe.skipIf(!onCuda)('kernels that wait', () => {
  test('end when the host poisons the memory, and the device works on', async () => {
    await withMemories(2, { byteLength: 8, numSignals: 1 }, async (ranks) => {
      for (const { memory, stream } of ranks) memory.wait({ index: 0, value: 1, timeoutMs: 600_000, stream })
      await sleep(100)
      ranks[1]!.memory.poison(new MoeEpError('ERR_MOE_EP_CHECK_FAILED', 'the sums differ'))
      for (const { stream } of ranks) {
        expect(await failureOf(stream.synchronize())).toMatchObject({
          code: 'ERR_MOE_EP_CHECK_FAILED',
          message: 'the sums differ',
        })
      }
      await expectDeviceWorks()
    })
  })

  test('of memory that is closed meanwhile still end with the words of its poison', async () => {
    await withMemories(2, { byteLength: 8, numSignals: 1 }, async ([first, second]) => {
      first!.memory.wait({ index: 0, value: 1, timeoutMs: 600_000, stream: first!.stream })
      second!.memory.poison(new MoeEpError('ERR_MOE_EP_CHECK_FAILED', 'the sums differ'))
      first!.memory.close()
      await sleep(100)
      expect(await failureOf(first!.stream.synchronize())).toMatchObject({ message: 'the sums differ' })
      await expectDeviceWorks()
    })
  })

  test('are ended by the poison of another process that is killed, and the device works on', async () => {
    running = await launch({ numRanks: 2, script, scenario: 'waitForRankOne' })
    await Promise.all(running.map((rank) => rank.event('ready')))
    running[1]!.kill()
    expect(await endsOf(running)).toEqual([0, 'SIGKILL'])
    expect(running[0]!.events[1]).toMatchObject({ event: 'failed', code: 'ERR_MOE_EP_PEER_LOST' })
    await expectDeviceWorks()
  })

  test('tell the other ranks of their deadline; the memory says so, and a new one works', async () => {
    const groups = await openWorld(2)
    const memories = await Promise.all(groups.map((group) => createMemory(group, { byteLength: 8, numSignals: 300 })))
    const streams = groups.map(() => device.createStream())
    memories[0]!.wait({ index: 299, value: 1, timeoutMs: 30, what: 'rows', stream: streams[0]! })
    const error = await failureOf(streams[0]!.synchronize())
    expect(error).toMatchObject({
      code: 'ERR_MOE_EP_TIMEOUT',
      message: 'rank 0: deadline passed: rows: signal 299 did not reach 1 in 30 ms',
    })
    memories[1]!.atomicAdd({ peer: 0, index: 0, delta: 1, stream: streams[1]! })
    const told = await failureOf(streams[1]!.synchronize())
    expect(told.message).toBe('rank 0: deadline passed: wait: signal 299 did not come')
    for (const memory of memories) {
      expect(memory.failure).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', message: told.message })
      memory.close()
    }
    const others = await Promise.all(groups.map((group) => createMemory(group, { byteLength: 8, numSignals: 1 })))
    others[0]!.signal({ peer: 1, index: 0, value: 1, stream: streams[0]! })
    others[1]!.wait({ index: 0, value: 1, stream: streams[1]! })
    await streams[1]!.synchronize()
    for (const memory of others) memory.close()
    await Promise.all(streams.map((stream) => stream.close()))
    await closeWorld(groups)
  })

  test('can be part of a graph that is replayed', async () => {
    await withMemories(2, { byteLength: 8, numSignals: 2 }, async (ranks) => {
      // Each adds to the other's signal and takes back its own: what the wait asks for comes anew every time.
      const graphs = ranks.map(({ rank, memory, stream }) =>
        Graph.capture(stream, () => {
          memory.atomicAdd({ peer: 1 - rank, index: 0, delta: 1, stream })
          memory.wait({ index: 0, value: 1, stream })
          memory.atomicAdd({ peer: rank, index: 0, delta: -1, stream })
          memory.atomicAdd({ peer: rank, index: 1, delta: 1, stream })
        }),
      )
      for (let round = 1; round <= 20; round++) ranks.forEach(({ stream }, rank) => graphs[rank]!.launch(stream))
      await Promise.all(ranks.map(({ stream }) => stream.synchronize()))
      expect(ranks.map(({ memory }) => memory.signalValue(1))).toEqual([20n, 20n])
      expect(ranks.map(({ memory }) => memory.signalValue(0))).toEqual([0n, 0n])
    })
  })
})

describe.skipIf(!onCuda)('what does not fit together', () => {
  test('a rank on the cpu and one on a GPU are refused on both', async () => {
    const groups = await openWorld(2)
    const devices = [getDevice('cpu'), device]
    const errors = await Promise.all(
      groups.map((group) => failureOf(createMemory(group, { byteLength: 8, device: devices[group.rank]! }))),
    )
    expect(codesOf(errors)).toEqual(Array(2).fill('ERR_MOE_EP_MISMATCH'))
    await closeWorld(groups)
  })

  test('a stream or a source of the cpu is refused before anything is enqueued', async () => {
    await withMemories(1, { byteLength: 8, numSignals: 1 }, async ([one]) => {
      const { memory, stream } = one!
      await using host = getDevice('cpu').createStream({ threads: 1 })
      const source = Tensor.wrap(new Uint8Array(8), [8], 'u8')
      for (const call of [
        () => memory.put(source, { peer: 0, byteOffset: 0, stream }),
        () => memory.put(source, { peer: 0, byteOffset: 0, stream: host }),
        () => memory.signal({ peer: 0, index: 0, value: 1, stream: host }),
        () => memory.atomicAdd({ peer: 0, index: 0, delta: 1, stream: host }),
        () => memory.wait({ index: 0, value: 1, stream: host }),
      ]) {
        expect(thrownBy(call).code).toBe('ERR_MOE_EP_ARGUMENT')
      }
      await stream.synchronize()
    })
  })
})
