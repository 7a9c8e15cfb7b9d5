import { MoeEpError } from './error.js'
import { native, type PlanHandle } from './native.js'
import type { Stream } from './stream.js'

/**
 * Operations whose arguments were checked and packed once, to be enqueued again and again at next to no cost. Unlike a graph, a plan is a
 * list of ordinary launches, and may be launched into a capture.
 */
export class Plan implements Disposable {
  readonly #handle: PlanHandle

  private constructor(handle: PlanHandle) {
    this.#handle = handle
  }

  /**
   * Keeps the operations that `body` enqueues on `stream` instead of running them. `body` is synchronous and enqueues operations only: no
   * events. Tensors that are used, the results that `body` allocates among them, stay alive as long as the plan; every launch writes the
   * same ones.
   * @throws ERR_MOE_EP_CAPTURE when `body` returns a promise, uses events, or `stream` is captured.
   */
  static of(stream: Stream, body: () => void): Plan {
    native().beginPlan(stream.handle)
    let result: unknown
    try {
      result = body()
    } catch (error) {
      native().endPlan(stream.handle)
      throw error
    }
    const plan = new Plan(native().endPlan(stream.handle))
    if (result instanceof Promise) {
      plan.close()
      throw new MoeEpError('ERR_MOE_EP_CAPTURE', 'the planned function must be synchronous, it returned a promise')
    }
    return plan
  }

  /**
   * Number of operations.
   * @throws ERR_MOE_EP_RELEASED.
   */
  get size(): number {
    return native().planSize(this.#handle)
  }

  /**
   * Enqueues the operations on `stream`, which is of the device that the plan was made on.
   * @throws ERR_MOE_EP_RELEASED when the plan or the stream was closed; ERR_MOE_EP_ARGUMENT for a stream of another device.
   */
  launch(stream: Stream): void {
    native().planLaunch(this.#handle, stream.handle)
  }

  /**
   * Launches `count` times in a loop of native code and gives the nanoseconds that it took: what remains when nothing is JavaScript.
   * For benchmarks.
   */
  launchTimes(stream: Stream, count: number): number {
    return native().planLaunchTimes(this.#handle, stream.handle, count)
  }

  /** Drops the operations and the tensors they hold; launches that are queued still run. Further use is ERR_MOE_EP_RELEASED. */
  close(): void {
    native().planClose(this.#handle)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}
