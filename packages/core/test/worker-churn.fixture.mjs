// Runs on the built package: worker threads end while they make calls, get errors and settle promises as fast as they can.
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker } from 'node:worker_threads'
import { getDevice, Tensor } from '../dist/index.js'

async function startWorker() {
  const worker = new Worker(fileURLToPath(import.meta.url))
  await once(worker, 'message')
  return worker
}

async function work() {
  const cpu = getDevice('cpu')
  const streams = [0, 1, 2].map(() => cpu.createStream({ threads: 2 }))
  let round = 0
  const flow = async (stream) => {
    for (;;) {
      stream.delay(10)
      streams[round++ % 3].wait(stream.record())
      const tensor = Tensor.wrap(new Float32Array(16), [16], 'f32')
      if (tensor.handle === undefined) throw new Error('a tensor has a handle')
      tensor.memory.close()
      stream.fail('ERR_MOE_EP_CAPACITY', 'full')
      await stream.synchronize().catch(() => {})
      // Errors that native code throws, which a terminating thread cannot take any more.
      try {
        Tensor.zeros([2 ** 46], 'u8', cpu)
      } catch {}
      if (round % 50 === 0) cpu.createStream()
    }
  }
  parentPort.postMessage('busy')
  await Promise.all(streams.map(flow))
}

if (isMainThread) {
  for (let round = 0; round < 20; round++) {
    const workers = await Promise.all([startWorker(), startWorker()])
    await sleep((round * 7) % 15)
    await Promise.all(workers.map((worker) => worker.terminate()))
  }
  console.log('terminated 40 workers')
} else {
  await work()
}
