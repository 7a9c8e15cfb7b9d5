import { type Socket, connect as connectSocket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { MoeEpError } from '@moe-ep/core'
import type { ConnectSettings } from './connect-options.js'
import { onAbort, startDeadline } from './deadline.js'
import { FrameChannel } from './frame-channel.js'
import { proveToHub } from './handshake.js'
import { frameHeadroomBytes } from './limits.js'

const firstBackOffMs = 20
const longestBackOffMs = 400

/**
 * Gives a connection to rank 0 on which both sides have proved themselves. Dials again while rank 0 is not there
 * yet.
 *
 * @throws ERR_MOE_EP_CONNECT when rank 0 was not reached in time, ERR_MOE_EP_AUTH, ERR_MOE_EP_PROTOCOL,
 *   ERR_MOE_EP_ABORTED
 */
export async function dialHub(settings: ConnectSettings, deadline: number): Promise<FrameChannel> {
  const { host, port, rank, timeoutMs, signal } = settings
  let lastError: unknown
  for (let backOffMs = firstBackOffMs; ; backOffMs = Math.min(2 * backOffMs, longestBackOffMs)) {
    if (signal?.aborted) throw abortedError(rank, signal)
    const remainingMs = deadline - performance.now()
    if (remainingMs <= 0) {
      const why = lastError instanceof Error ? `: ${lastError.message}` : ''
      const message = `rank ${rank}: rank 0 was not reached at ${host}, port ${port}, within ${timeoutMs} ms${why}`
      throw new MoeEpError('ERR_MOE_EP_CONNECT', message, {
        cause: lastError,
        details: { rank, host, port, timeoutMs },
      })
    }
    try {
      return await attempt(settings, Math.ceil(remainingMs))
    } catch (error) {
      if (signal?.aborted) throw abortedError(rank, signal)
      if (MoeEpError.isInstance(error, 'ERR_MOE_EP_AUTH') || MoeEpError.isInstance(error, 'ERR_MOE_EP_PROTOCOL'))
        throw error
      lastError = error
    }
    // Ranks start together; different pauses keep them from coming back together.
    const pauseMs = Math.min(backOffMs * (0.5 + Math.random()), Math.max(1, deadline - performance.now()))
    await delay(pauseMs, undefined, signal ? { signal } : {}).catch(() => {})
  }
}

/** The error of a rank whose own signal ended `connect`. */
export function abortedError(rank: number, signal: AbortSignal): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_ABORTED', `rank ${rank}: connect was aborted`, {
    cause: signal.reason,
    details: { rank },
  })
}

async function attempt(settings: ConnectSettings, timeoutMs: number): Promise<FrameChannel> {
  const { secret, worldSize, rank, maxFrameBytes, signal } = settings
  const channel = new FrameChannel(await openSocket(settings, timeoutMs))
  try {
    await proveToHub(channel, {
      secret,
      worldSize,
      rank,
      timeoutMs,
      signal,
      frameBytes: maxFrameBytes + frameHeadroomBytes,
    })
    return channel
  } catch (error) {
    channel.destroy()
    throw error
  }
}

function openSocket({ host, port, signal }: ConnectSettings, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connectSocket({ host, port })
    const cleanUps: (() => void)[] = []
    const fail = (error: unknown) => {
      for (const cleanUp of cleanUps) cleanUp()
      // The late error of a socket that is given up must find a listener.
      socket.on('error', () => {})
      socket.destroy()
      reject(error as Error)
    }
    socket.once('error', fail)
    socket.once('connect', () => {
      for (const cleanUp of cleanUps) cleanUp()
      socket.off('error', fail)
      resolve(socket)
    })
    cleanUps.push(startDeadline(timeoutMs, () => fail(new Error('no answer'))))
    cleanUps.push(onAbort(signal, fail))
  })
}
