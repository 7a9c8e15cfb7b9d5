import type { InferenceSession } from 'onnxruntime-node'
import { MoeEpError, argumentError } from '@moe-ep/core'
import { checkLength, checkOperands, checkSizes, type ExpertSizes } from '../expert-sizes.js'
import { expertGraph } from './expert-graph.js'
import { encodeOnnxModel } from './model.js'
import { loadOnnxRuntime, type OnnxRuntime } from './runtime.js'

/** What an engine is made for. */
export interface OnnxExpertEngineOptions extends ExpertSizes {
  /**
   * Threads that one matrix product may use. Many ranks on one machine want one each.
   * @default 1
   */
  readonly threads?: number
}

/** Where a run puts its result. */
export interface OnnxExpertRunOptions {
  /** Memory for the result [m, K]; it is written in place. Without it the result is a new array. */
  readonly out?: Float32Array
}

/**
 * Runs experts of one pair of sizes on onnxruntime-node: GEMM, SiLU and multiply, GEMM, all f32.
 *
 * One session serves all experts; weights are inputs of each run and are read where they lie. Keeping them inside a
 * session of their own per expert runs two to three times as fast at 4 to 16 rows and about 10% faster at 512, but it
 * more than doubles their memory and costs tens of such runs to set up.
 */
export class OnnxExpertEngine {
  readonly #sizes: ExpertSizes
  readonly #runtime: OnnxRuntime
  #session: InferenceSession | undefined
  /** Runs end in the order in which they were asked for, so the last one stands for all. */
  #lastRun: Promise<unknown> = Promise.resolve()

  private constructor(sizes: ExpertSizes, runtime: OnnxRuntime, session: InferenceSession) {
    this.#sizes = sizes
    this.#runtime = runtime
    this.#session = session
  }

  /**
   * An engine for experts with these sizes; close it when it is no longer needed.
   *
   * @throws ERR_MOE_EP_ARGUMENT for sizes or threads that are not positive integers, ERR_MOE_EP_UNSUPPORTED when
   * onnxruntime-node is not installed, ERR_MOE_EP_NATIVE_LOAD when it does not load.
   */
  static async create(options: OnnxExpertEngineOptions): Promise<OnnxExpertEngine> {
    const { hidden, intermediate, threads = 1 } = options
    checkSizes(options)
    if (!Number.isSafeInteger(threads) || threads < 1) throw argumentError('threads', 'a positive integer', threads)
    const runtime = await loadOnnxRuntime()
    const session = await runtime.InferenceSession.create(encodeOnnxModel(expertGraph({ hidden, intermediate })), {
      executionProviders: ['cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      executionMode: 'sequential',
      graphOptimizationLevel: 'all',
      // The number of rows differs from run to run, and a memory pattern is kept for every number that was ever seen.
      enableMemPattern: false,
      logSeverityLevel: 3,
    })
    return new OnnxExpertEngine({ hidden, intermediate }, runtime, session)
  }

  /**
   * The expert's output rows [m, K] for rows `x` [m, K] under weights `w13` [2I, K] (gate rows, then up rows) and
   * `w2` [K, I]. Nothing is copied, except from shared memory (SharedArrayBuffer), which the runtime cannot read.
   *
   * The arrays must not change until the promise settles. The products run on the calling thread (plus
   * `threads - 1` more), which serves nothing else meanwhile.
   *
   * @throws ERR_MOE_EP_ARGUMENT when a length does not fit the sizes, ERR_MOE_EP_RELEASED after close,
   * ERR_MOE_EP_INTERNAL when the runtime fails.
   */
  async run(
    x: Float32Array,
    w13: Float32Array,
    w2: Float32Array,
    { out }: OnnxExpertRunOptions = {},
  ): Promise<Float32Array> {
    const { hidden, intermediate } = this.#sizes
    const rows = checkOperands(this.#sizes, { x, w13, w2 })
    if (out !== undefined) checkLength('out', out, rows * hidden)
    if (this.#session === undefined) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'this OnnxExpertEngine is closed')
    if (rows === 0) return out ?? new Float32Array(0)

    const target = out !== undefined && isShared(out) ? undefined : out
    const y = await this.#runSession(this.#session, {
      feeds: {
        x: this.#tensor(x, [rows, hidden]),
        w13: this.#tensor(w13, [2 * intermediate, hidden]),
        w2: this.#tensor(w2, [hidden, intermediate]),
      },
      fetches: target === undefined ? ['y'] : { y: this.#tensor(target, [rows, hidden]) },
    })
    if (out === undefined) return y
    if (target === undefined) out.set(y)
    return out
  }

  /** Gives the session back once the runs already asked for have ended. Closing twice is fine. */
  async close(): Promise<void> {
    const session = this.#session
    this.#session = undefined
    await this.#lastRun.catch(() => undefined)
    await session?.release()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #runSession(
    session: InferenceSession,
    { feeds, fetches }: { feeds: InferenceSession.FeedsType; fetches: InferenceSession.FetchesType },
  ): Promise<Float32Array> {
    const run = session.run(feeds, fetches)
    this.#lastRun = run
    try {
      const { y } = await run
      return y!.data as Float32Array
    } catch (error) {
      throw new MoeEpError('ERR_MOE_EP_INTERNAL', `onnxruntime-node failed to run an expert: ${String(error)}`, {
        cause: error,
      })
    }
  }

  #tensor(values: Float32Array, shape: number[]) {
    return new this.#runtime.Tensor('float32', isShared(values) ? values.slice() : values, shape)
  }
}

function isShared(values: Float32Array): boolean {
  return values.buffer instanceof SharedArrayBuffer
}
