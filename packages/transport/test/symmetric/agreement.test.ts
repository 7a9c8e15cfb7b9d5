import { getDevice } from '@moe-ep/core'
import { expect, test } from 'vitest'
import type { ConnectOptions, Sharing } from '../../src/index.js'
import { agree, type Agreement, type Wish, wishOf } from '../../src/symmetric/agreement.js'
import { closeWorld, codesOf, failureOf, openWorld } from './world.js'

const wait = { timeoutMs: 10_000, signal: undefined, label: 'symmetric memory' }
/** A rank with a GPU of its own. */
const gpuWish = (rank: number): Wish => ({
  ...{ byteLength: 1000, numSignals: 1, kind: 'cuda', sharing: 'auto', gpu: `GPU-${rank}`, canExport: true },
  freeBytes: 1500,
})

type Made = (rank: number) => Partial<Wish>

/** Runs `body` in a world whose ranks wish for this. */
async function withWishes<Result>(
  make: Made,
  body: (agreements: Promise<Agreement>[]) => Promise<Result>,
  connect: ConnectOptions = {},
): Promise<Result> {
  const groups = await openWorld(3, connect)
  try {
    return await body(groups.map((group) => agree(group, { ...gpuWish(group.rank), ...make(group.rank) }, wait)))
  } finally {
    await closeWorld(groups)
  }
}

test.each<[Sharing, string, Made]>([
  ['vmm', 'every driver can export', () => ({})],
  ['vmm', 'it is asked for', () => ({ sharing: 'vmm' })],
  ['ipc', 'it is asked for', () => ({ sharing: 'ipc' })],
  ['ipc', 'one driver cannot export', (rank) => ({ canExport: rank !== 1 })],
  ['memfd', 'all are on the cpu', () => ({ kind: 'cpu', gpu: '', canExport: false, freeBytes: 10_000 })],
])('memory is shared by %s on all ranks when %s', async (sharing, _, make) => {
  const agreed = await withWishes(make, (agreements) => Promise.all(agreements))
  expect(agreed.map((agreement) => agreement.sharing)).toEqual(Array(3).fill(sharing))
})

test.each<[string, string, Made, string[]]>([
  [
    'ERR_MOE_EP_MISMATCH',
    'kinds of devices differ',
    (rank) => ({ kind: rank === 2 ? 'cpu' : 'cuda' }),
    ['rank 0', 'a cuda device', 'rank 2', 'the cpu'],
  ],
  [
    'ERR_MOE_EP_MISMATCH',
    'ways of sharing differ',
    (rank) => ({ sharing: rank === 1 ? 'ipc' : 'auto' }),
    ['rank 1', 'by ipc'],
  ],
  [
    'ERR_MOE_EP_UNSUPPORTED',
    'vmm is asked for where one driver cannot',
    (rank) => ({ sharing: 'vmm', canExport: rank !== 2 }),
    ["rank 2's driver"],
  ],
  [
    'ERR_MOE_EP_OUT_OF_MEMORY',
    'two ranks share a GPU that has room for one',
    (rank) => ({ gpu: rank === 0 ? 'GPU-2' : `GPU-${rank}` }),
    ["rank 0's GPU has 1500 bytes left for 2 ranks"],
  ],
  [
    'ERR_MOE_EP_OUT_OF_MEMORY',
    'one GPU has too little room',
    (rank) => ({ freeBytes: rank === 1 ? 999 : 1000 }),
    ["rank 1's GPU has 999 bytes left for 1 ranks"],
  ],
])('%s on all ranks when %s', async (code, _, make, texts) => {
  const errors = await withWishes(make, (agreements) => Promise.all(agreements.map(failureOf)))
  expect(codesOf(errors)).toEqual(Array(3).fill(code))
  for (const { message } of errors) for (const text of texts) expect(message).toContain(text)
})

test('ranks of two nodes of one machine count for their node, those of one GPU for the GPU', async () => {
  const connect = { nodes: 3 }
  const cpu: Made = () => ({ kind: 'cpu', gpu: '' })
  const own = await withWishes(cpu, (agreements) => Promise.all(agreements), connect)
  expect(own).toEqual(own.map(() => ({ sharing: 'memfd', ranksOnDevice: 1 })))
  expect(own).toHaveLength(3)
  const gpu: Made = () => ({ gpu: 'GPU-0' })
  const errors = await withWishes(gpu, (agreements) => Promise.all(agreements.map(failureOf)), connect)
  expect(codesOf(errors)).toEqual(Array(3).fill('ERR_MOE_EP_OUT_OF_MEMORY'))
})

test('every rank hears how many share its device', async () => {
  const shared: Made = (rank) => ({ gpu: rank === 1 ? 'GPU-1' : 'GPU-0', freeBytes: 2000 })
  const agreed = await withWishes(shared, (agreements) => Promise.all(agreements))
  expect(agreed.map(({ ranksOnDevice }) => ranksOnDevice)).toEqual([2, 1, 2])
})

test.each([
  ['nothing', ''],
  ['no object', 'null'],
  ['a size that is none', JSON.stringify({ ...gpuWish(1), byteLength: -1 })],
  ['a device that is none', JSON.stringify({ ...gpuWish(1), kind: 'tpu' })],
  ['a text for a number', JSON.stringify({ ...gpuWish(1), freeBytes: '1500' })],
])('a rank that sends %s is named on all ranks', async (_, text) => {
  const groups = await openWorld(2)
  const told = groups[1]!.allGather(Buffer.from(text), wait)
  const error = await failureOf(agree(groups[0]!, gpuWish(0), wait))
  expect(error).toMatchObject({ code: 'ERR_MOE_EP_PROTOCOL', message: expect.stringContaining('rank 1') })
  await told
  await closeWorld(groups)
})

test('what a rank on the cpu wishes for says what its machine has left', () => {
  const wish = wishOf(getDevice('cpu'), { byteLength: 8, numSignals: 1 }, 'auto')
  expect(wish).toMatchObject({ byteLength: 8, numSignals: 1, kind: 'cpu', sharing: 'auto', canExport: false })
  expect(wish.freeBytes).toBeGreaterThan(1e6)
})
