import { type Device, type Event, type ErrorCode, MoeEpError, Stream } from '@moe-ep/core'
import type { RefuseOptions } from './dispatch-types.js'
import { type BufferHandle, native } from './native.js'

/** Of which buffer refusals are told. */
interface RefuserOptions {
  readonly buffer: BufferHandle
  readonly device: Device
  /** Deadline of a refusal's wait for peers, unless the call has one that can be used. */
  readonly timeoutMs: number
  /** Whether the buffer was given up: then nobody waits any more. */
  readonly isGivenUp: () => boolean
}

/** Tells other ranks that this one cannot make a call, on the call's stream where that runs, else on the default stream. */
export class Refuser {
  readonly #options: RefuserOptions

  constructor(options: RefuserOptions) {
    this.#options = options
  }

  /**
   * Takes part in the meeting of dispatch number `call` with the error. `awaited`: a call that cannot be captured. Gives the end of
   * the meeting, if there is one.
   */
  dispatch(call: number, error: unknown, options: RefuseOptions | undefined, awaited: boolean): Event | undefined {
    const { stream: wanted, timeoutMs: ownTimeoutMs } = options ?? {}
    // A call that can be captured is captured by the others, too, and nobody waits for a word.
    const stream = this.#streamFor(awaited && isCapturing(wanted) ? undefined : wanted)
    if (stream === undefined) return undefined
    const { code, words } = refusalOf(error)
    const timeoutMs = Number.isSafeInteger(ownTimeoutMs) && ownTimeoutMs! > 0 ? ownTimeoutMs! : this.#options.timeoutMs
    native().refuseDispatch(stream.handle, this.#options.buffer, call, code, words, timeoutMs)
    return stream.record()
  }

  /** Leaves the error where others look for this rank's results, once the slot was filled. Gives the end of that, if it runs. */
  combine(slot: number, error: unknown, wanted: Stream | undefined, filled: Event): Event | undefined {
    const stream = this.#streamFor(wanted)
    if (stream === undefined) return undefined
    const { code, words } = refusalOf(error)
    stream.wait(filled)
    native().refuseCombine(stream.handle, this.#options.buffer, slot, code, words)
    return stream.record()
  }

  /** Undefined: nothing can be told, or nobody waits for it. */
  #streamFor(wanted: unknown): Stream | undefined {
    const { isGivenUp, device } = this.#options
    if (isGivenUp() || isCapturing(wanted)) return undefined
    // The stream may be what is wrong with the call.
    return [wanted, device.defaultStream].find(
      (stream): stream is Stream =>
        stream instanceof Stream && stream.device.name === device.name && !stream.closed && !stream.capturing,
    )
  }
}

function isCapturing(stream: unknown): boolean {
  return stream instanceof Stream && !stream.closed && stream.capturing
}

/** An error as it travels: its words are cut, between two characters, to what a message has place for. */
function refusalOf(error: unknown): { readonly code: ErrorCode; readonly words: string } {
  const { code, message } = MoeEpError.from(error)
  const { read } = new TextEncoder().encodeInto(message, new Uint8Array(native().refusalWordBytes))
  return { code, words: message.slice(0, read) }
}
