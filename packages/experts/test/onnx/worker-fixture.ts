import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads'
import { fileURLToPath } from 'node:url'
import { OnnxExpertEngine, referenceExpert } from '../../src/index.js'
import { randomValues, relativeError } from '../random.js'

const workers = 8
const sizes = { hidden: 64, intermediate: 32 }

/** One worker's part: an engine of its own, some runs, and the largest error seen. */
async function runAsWorker(rank: number): Promise<number> {
  const engine = await OnnxExpertEngine.create(sizes)
  let error = 0
  for (let round = 0; round < 20; round++) {
    const x = randomValues((1 + ((rank + round) % 5)) * sizes.hidden, 100 * rank + round)
    const w13 = randomValues(2 * sizes.intermediate * sizes.hidden, rank)
    const w2 = randomValues(sizes.hidden * sizes.intermediate, rank + 50)
    const y = await engine.run(x, w13, w2)
    error = Math.max(error, relativeError(y, referenceExpert({ ...sizes, x, w13, w2 })))
  }
  // Odd ranks leave without closing: a worker that ends early must not take the process down.
  if (rank % 2 === 0) await engine.close()
  return error
}

function startWorker(rank: number): Promise<number> {
  return new Promise((resolve, reject) => {
    let result = Number.NaN
    const worker = new Worker(fileURLToPath(import.meta.url), { workerData: rank })
    worker.on('message', (error: number) => (result = error))
    worker.on('error', reject)
    worker.on('exit', (code) =>
      code === 0 ? resolve(result) : reject(new Error(`worker ${rank} exited with ${code}`)),
    )
  })
}

if (isMainThread) {
  const errors = await Promise.all(Array.from({ length: workers }, (_, rank) => startWorker(rank)))
  // The main thread uses the runtime too, after every worker that had loaded it is gone.
  errors.push(await runAsWorker(0))
  process.stdout.write(JSON.stringify(errors))
} else {
  parentPort!.postMessage(await runAsWorker(Number(workerData)))
}
