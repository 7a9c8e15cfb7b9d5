import { MoeEpError } from './error.js'
import { type GraphHandle, native } from './native.js'
import type { Stream } from './stream.js'

/** Work that was recorded once and can be launched many times. */
export class Graph implements Disposable {
  readonly #handle: GraphHandle

  private constructor(handle: GraphHandle) {
    this.#handle = handle
  }

  /**
   * Records what `body` enqueues on `stream`, and on streams that join by waiting for its events, instead of running it.
   * `body` is synchronous: nothing can be awaited inside. Tensors that are used stay alive as long as the graph. On a cuda device the
   * end of a capture may wait for kernels that run.
   * @throws ERR_MOE_EP_CAPTURE when `body` returns a promise, or when `stream` does not wait, directly or through other streams, for
   * all work of the streams that joined.
   */
  static capture(stream: Stream, body: () => void): Graph {
    native().beginCapture(stream.handle)
    let result: unknown
    try {
      result = body()
    } catch (error) {
      endQuietly(stream)
      throw error
    }
    if (result instanceof Promise) {
      endQuietly(stream)
      throw new MoeEpError('ERR_MOE_EP_CAPTURE', 'the captured function must be synchronous, it returned a promise')
    }
    return new Graph(native().endCapture(stream.handle))
  }

  /**
   * Recorded commands and events.
   * @throws ERR_MOE_EP_RELEASED.
   */
  get size(): number {
    return native().graphSize(this.#handle)
  }

  /**
   * Kernels, copies and fills that the recorded commands are on a GPU, or the commands of the cpu. What every launch of any graph adds,
   * to tell of failures and events, is not counted.
   * @throws ERR_MOE_EP_RELEASED.
   */
  get operations(): number {
    return native().graphOperations(this.#handle)
  }

  /**
   * Enqueues all recorded work on `stream`. Events that were recorded in the capture now stand for this launch.
   * @throws ERR_MOE_EP_RELEASED when the graph or the stream was closed; ERR_MOE_EP_CAPTURE when the stream is captured.
   */
  launch(stream: Stream): void {
    native().graphLaunch(this.#handle, stream.handle)
  }

  /** Drops the recorded work and the tensors it holds; launches that are queued still run. Further use is ERR_MOE_EP_RELEASED. */
  close(): void {
    native().graphClose(this.#handle)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/** Ends a capture whose body failed; that failure is what the caller hears of. */
function endQuietly(stream: Stream): void {
  try {
    native().endCapture(stream.handle)
  } catch {
    // A stream left unjoined is a consequence of the body's own error.
  }
}
