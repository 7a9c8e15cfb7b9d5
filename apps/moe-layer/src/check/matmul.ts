import { availableParallelism } from 'node:os'
import { disableOnnxTelemetry, encodeOnnxModel } from '@moe-ep/experts'
import type { InferenceSession } from 'onnxruntime-node'

/** Multiplies matrices; close it after use. */
export interface Matmul {
  /** What does the work: the library where it is installed, else plain loops. */
  readonly engine: 'onnxruntime' | 'typescript'
  /** `a . b^T` [M, N] of f32 matrices `a` [M, K] and `b` [N, K]; M may be 0. */
  product(a: Float32Array, b: Float32Array, inner: number): Promise<Float32Array>
  close(): Promise<void>
}

/** How to multiply. */
export interface MatmulOptions {
  /** Which engine; `auto` takes onnxruntime where it loads. @default 'auto' */
  readonly engine?: 'auto' | 'onnxruntime' | 'typescript'
  /** Threads of one product with onnxruntime. @default all cores */
  readonly threads?: number
}

/** A multiplier for matrices of any sizes. */
export async function createMatmul({
  engine = 'auto',
  threads = availableParallelism(),
}: MatmulOptions = {}): Promise<Matmul> {
  if (engine === 'typescript') return plainMatmul
  try {
    return await createOnnxMatmul(threads)
  } catch (error) {
    if (engine === 'onnxruntime') throw error
    return plainMatmul
  }
}

const plainMatmul: Matmul = {
  engine: 'typescript',
  product: (a, b, inner) => Promise.resolve(multiply(a, b, inner)),
  close: () => Promise.resolve(),
}

/** Rows of b in a block: as many as stay in a second-level cache while all rows of a pass by. */
const blockElements = 64 * 1024

function multiply(a: Float32Array, b: Float32Array, inner: number): Float32Array {
  const rows = a.length / inner
  const columns = b.length / inner
  const result = new Float32Array(rows * columns)
  const blockColumns = Math.max(1, Math.floor(blockElements / inner))
  for (let start = 0; start < columns; start += blockColumns) {
    const end = Math.min(columns, start + blockColumns)
    for (let row = 0; row < rows; row++) {
      for (let column = start; column < end; column++) {
        let sum = 0
        for (let i = 0; i < inner; i++) sum += a[row * inner + i]! * b[column * inner + i]!
        result[row * columns + column] = sum
      }
    }
  }
  return result
}

async function createOnnxMatmul(threads: number): Promise<Matmul> {
  disableOnnxTelemetry()
  const { InferenceSession, Tensor } = await import('onnxruntime-node')
  const model = encodeOnnxModel({
    name: 'product',
    inputs: [
      { name: 'a', shape: ['m', 'k'] },
      { name: 'b', shape: ['n', 'k'] },
    ],
    outputs: [{ name: 'c', shape: ['m', 'n'] }],
    nodes: [{ operator: 'Gemm', inputs: ['a', 'b'], outputs: ['c'], attributes: { transB: 1 } }],
  })
  const session: InferenceSession = await InferenceSession.create(model, {
    executionProviders: ['cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    enableMemPattern: false,
    logSeverityLevel: 3,
  })
  return {
    engine: 'onnxruntime',
    async product(a, b, inner) {
      if (a.length === 0 || b.length === 0) return new Float32Array((a.length / inner) * (b.length / inner))
      const { c } = await session.run({
        a: new Tensor('float32', a, [a.length / inner, inner]),
        b: new Tensor('float32', b, [b.length / inner, inner]),
      })
      return c!.data as Float32Array
    },
    close: () => session.release(),
  }
}
