import type { Socket } from 'node:net'
import { MoeEpError } from '@moe-ep/core'
import { onAbort, startDeadline } from './deadline.js'
import { FrameReader } from './frame-codec.js'
import { unauthenticatedFrameBytes, unauthenticatedFrames } from './limits.js'
import { type Message, decodeMessage } from './messages.js'

/** Who wants to know what comes through a channel. */
export interface ChannelHandlers {
  message(message: Message): void
  /**
   * Nothing more will come: the peer ended or broke the connection (`undefined` or the socket's error), or broke
   * the protocol.
   */
  ended(cause: Error | undefined): void
}

const keepAliveMs = 10_000

/** A socket that speaks in messages. Until {@link trust} is called it accepts only small frames and few of them. */
export class FrameChannel {
  readonly #socket: Socket
  readonly #reader = new FrameReader(unauthenticatedFrameBytes)
  #maxQueued = unauthenticatedFrames
  #queue: Message[] = []
  #handlers: ChannelHandlers | undefined
  #end: { cause: Error | undefined } | undefined
  #endToldTo: ChannelHandlers | undefined
  #socketError: Error | undefined

  constructor(socket: Socket) {
    this.#socket = socket
    socket.setNoDelay(true)
    socket.setKeepAlive(true, keepAliveMs)
    socket.on('data', (chunk: Buffer) => this.#read(chunk))
    socket.on('error', (error) => {
      this.#socketError = error
    })
    socket.on('end', () => this.#finish(undefined))
    socket.on('close', () => this.#finish(this.#socketError))
  }

  /** Lifts the limits for unproved peers; frames may now be as large as `frameBytes`. */
  trust(frameBytes: number): void {
    this.#reader.limit = frameBytes
    this.#maxQueued = Number.POSITIVE_INFINITY
  }

  /** Sends encoded messages; what a closed channel is given is dropped, its end having been reported. */
  send(...frames: readonly Uint8Array[]): void {
    if (!this.#socket.writable) return
    this.#socket.cork()
    for (const frame of frames) this.#socket.write(frame)
    this.#socket.uncork()
  }

  /** Sets who hears of messages and of the end, and hands over what has waited; without handlers messages wait. */
  handle(handlers: ChannelHandlers | undefined): void {
    this.#handlers = handlers
    this.#deliver()
  }

  /**
   * Gives the next message.
   *
   * @throws ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_ABORTED, ERR_MOE_EP_PROTOCOL, or ERR_MOE_EP_CONNECT when the peer hung up
   */
  next(options: { timeoutMs: number; signal?: AbortSignal | undefined }): Promise<Message> {
    return new Promise((resolve, reject) => {
      const cleanUps: (() => void)[] = []
      const settle = (finish: () => void) => {
        this.handle(undefined)
        for (const cleanUp of cleanUps) cleanUp()
        finish()
      }
      const fail = (error: MoeEpError) => settle(() => reject(error))
      cleanUps.push(
        startDeadline(options.timeoutMs, () => fail(new MoeEpError('ERR_MOE_EP_TIMEOUT', 'the peer kept silent'))),
      )
      cleanUps.push(
        onAbort(options.signal, (reason) => fail(new MoeEpError('ERR_MOE_EP_ABORTED', 'aborted', { cause: reason }))),
      )
      if (options.signal?.aborted) return
      this.handle({
        message: (message) => settle(() => resolve(message)),
        ended: (cause) => fail(MoeEpError.from(cause ?? new Error('the peer hung up'), 'ERR_MOE_EP_CONNECT')),
      })
    })
  }

  /** Flushes what was sent, ends the connection and waits until it is closed, for at most `timeoutMs`. */
  end(timeoutMs: number, signal?: AbortSignal): Promise<void> {
    const socket = this.#socket
    this.#handlers = ignoreAll
    this.#queue = []
    if (socket.destroyed) return Promise.resolve()
    return new Promise((resolve) => {
      const destroy = () => socket.destroy()
      const cancelDeadline = startDeadline(timeoutMs, destroy)
      const stopListening = onAbort(signal, destroy)
      socket.once('close', () => {
        cancelDeadline()
        stopListening()
        resolve()
      })
      socket.end()
      // A paused socket would never see the peer's end.
      socket.resume()
    })
  }

  /** Drops the connection at once. */
  destroy(): void {
    this.#queue = []
    this.#socket.destroy()
    this.#finish(undefined)
  }

  #read(chunk: Buffer): void {
    // After a violation the rest is read and dropped, so that the peer can still be told why.
    if (this.#end || this.#handlers === ignoreAll) return
    try {
      this.#reader.push(chunk, (frame) => {
        if (this.#end) return
        if (this.#queue.length >= this.#maxQueued)
          throw new MoeEpError('ERR_MOE_EP_PROTOCOL', 'too many frames arrived')
        this.#queue.push(decodeMessage(frame))
        this.#deliver()
      })
    } catch (error) {
      this.#finish(MoeEpError.from(error, 'ERR_MOE_EP_PROTOCOL'))
    }
  }

  #finish(cause: Error | undefined): void {
    this.#end ??= { cause }
    this.#deliver()
  }

  #deliver(): void {
    while (this.#handlers && this.#queue.length > 0) this.#handlers.message(this.#queue.shift() as Message)
    const handlers = this.#handlers
    if (!handlers || !this.#end || this.#endToldTo === handlers) return
    this.#endToldTo = handlers
    handlers.ended(this.#end.cause)
  }
}

const ignoreAll: ChannelHandlers = { message: () => {}, ended: () => {} }
