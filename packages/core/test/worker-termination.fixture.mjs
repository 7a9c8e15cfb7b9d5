// Runs on the built package, as users have it: worker threads end while native threads of theirs are busy.
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Event, getDefaultDevice, getDevice, Graph, Tensor } from '../dist/index.js'

const hourUs = 3_600_000_000
const device = getDefaultDevice()

/** Streams that wait in every way there is: running, queued, for each other, with promises and a graph behind them. */
function startLongWork() {
  const streams = [1, 2, 3].map((threads) => device.createStream({ threads }))
  const [first, second, third] = streams
  const graph = Graph.capture(third, () => third.delay(hourUs))
  first.delay(hourUs)
  const event = first.record()
  second.wait(event)
  second.delay(hourUs)
  graph.launch(third)
  graph.launch(third)
  const pending = [...streams.map((stream) => stream.synchronize()), event.synchronize()]
  for (const promise of pending) promise.catch(() => {})
  return {
    streams,
    graph,
    event: new Event(device),
    tensor: Tensor.zeros([1024, 1024], 'f32'),
    view: getDevice('cpu').allocate(4096).arrayBuffer,
  }
}

async function startWorker(role) {
  const worker = new Worker(fileURLToPath(import.meta.url), { workerData: role })
  await once(worker, 'message')
  return worker
}

async function mainWorks() {
  const stream = device.createStream({ threads: 2 })
  stream.delay(10)
  await stream.synchronize()
  await stream.close()
  console.log(`main works: ${(await Tensor.from([1, 2], [2], 'bf16').readNumbers()).join()}`)
}

const scenarios = {
  async terminate() {
    for (let i = 0; i < 8; i++) await (await startWorker('stay')).terminate()
    for (let round = 0; round < 2; round++) {
      const workers = await Promise.all(Array.from({ length: 8 }, () => startWorker('stay')))
      await Promise.all(workers.map((worker) => worker.terminate()))
    }
    console.log('terminated 24 workers')
    await mainWorks()
  },
  async leave() {
    const codes = []
    for (const role of ['abort', 'exit']) {
      const worker = new Worker(fileURLToPath(import.meta.url), { workerData: role })
      codes.push((await once(worker, 'exit'))[0])
    }
    console.log(`exit codes ${codes.join()}`)
    await mainWorks()
  },
  async exit() {
    startLongWork()
    console.log('leaving')
    process.exit(0)
  },
}

if (isMainThread) {
  await scenarios[process.argv[2]]()
} else {
  const work = startLongWork()
  parentPort.postMessage('busy')
  if (workerData === 'exit') process.exit(7)
  if (workerData === 'abort') for (const stream of work.streams) stream.abort()
  // Held until the thread ends, so that nothing is collected before.
  if (workerData === 'stay') setInterval(() => work, 1_000)
}
