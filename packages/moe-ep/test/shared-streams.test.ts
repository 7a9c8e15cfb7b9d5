import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { expect, test } from 'vitest'
import {
  type Device,
  getDefaultDevice,
  getDevice,
  Graph,
  layout,
  permute,
  quant,
  type StorageArray,
  Tensor,
} from '../src/index.js'

const [tokens, hidden, topk, experts] = [50, 256, 4, 16]
const random = (count: number, scale: number): number[] =>
  Array.from({ length: count }, (_, i) => (((i * 2654435761) >>> 8) % 1000) / scale - 500 / scale)

/** Operations of three addons on two streams of a device: a graph that is launched, and the results of its last launch. */
async function run(device: Device): Promise<StorageArray[]> {
  const [main, side] = [device.createStream(), device.createStream()]
  const x = Tensor.from(random(tokens * hidden, 100), [tokens, hidden], 'bf16', device)
  const ids = random(tokens * topk, 1).map((value) => Math.abs(Math.trunc(value)) % experts)
  const topkIdx = Tensor.from(ids, [tokens, topk], 'i64', device)
  const topkWeights = Tensor.from(random(tokens * topk, 1000), [tokens, topk], 'f32', device)
  const results: Tensor[] = []
  const graph = Graph.capture(main, () => {
    side.wait(main.record())
    const counts = layout.getDispatchLayout(topkIdx, { numExperts: experts, numRanks: 4, stream: side })
    const { values, scales } = quant.quantizePerTokenGroup(x, { stream: main })
    const permuted = permute.permute(values, { scales, topkIdx, numLocalExperts: experts, stream: main })
    const rows = permute.permute(x, { topkIdx, numLocalExperts: experts, stream: side })
    main.wait(side.record())
    const { inversePermutation } = rows
    const y = permute.unpermuteAndReduce(rows.rows, { topkIdx, topkWeights, inversePermutation, stream: main })
    results.push(counts.numTokensPerExpert, counts.isTokenInRank, values, scales, permuted.rows, permuted.scales!)
    results.push(permuted.expertIds, y)
  })
  for (let i = 0; i < 3; i++) graph.launch(main)
  const read: StorageArray[] = []
  for (const tensor of results) read.push(await tensor.read({ stream: main }))
  graph.close()
  await Promise.all([main.close(), side.close()])
  return read
}

test('addons share the streams, the memory and the captures of a device, which gives what the cpu gives', async () => {
  const expected = await run(getDevice('cpu'))
  expect(await run(getDefaultDevice())).toEqual(expected)
})

test('so do worker threads, each with streams of its own', async () => {
  const worker = fileURLToPath(new URL('fixtures/device-worker.mjs', import.meta.url))
  const sums = await Promise.all(
    [1, 2, 3].map(
      (factor) =>
        new Promise<number>((resolve, reject) => {
          new Worker(worker, { workerData: factor, execArgv: [] }).once('message', resolve).once('error', reject)
        }),
    ),
  )
  expect(sums).toEqual([1, 2, 3].map((factor) => factor * 128))
})
