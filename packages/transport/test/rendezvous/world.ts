import { createServer } from 'node:net'
import { MoeEpError } from '@moe-ep/core'
import { type ConnectOptions, type ProcessGroup, connect } from '../../src/rendezvous/index.js'

export const secret = 'a secret that only these tests know'

/** A port that nobody listens at just now. */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, host, resolve)
  })
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}

/** Options of one rank of a world on this machine, independent of the environment that the tests run in. */
export function rankOptions(rank: number, worldSize: number, port: number, extra: ConnectOptions = {}): ConnectOptions {
  return { rank, worldSize, port, secret, timeoutMs: 10_000, environment: {}, ...extra }
}

/** All ranks of a world, as groups in this process. */
export async function openWorld(worldSize: number, extra: ConnectOptions = {}): Promise<ProcessGroup[]> {
  const port = await freePort(extra.host)
  const ranks = Array.from({ length: worldSize }, (_, rank) => rank)
  return Promise.all(ranks.map((rank) => connect(rankOptions(rank, worldSize, port, extra))))
}

export async function closeWorld(groups: readonly ProcessGroup[]): Promise<void> {
  await Promise.all(groups.map((group) => group.close()))
}

/** What a promise rejects with; resolving is an error. */
export async function failureOf(promise: Promise<unknown>): Promise<MoeEpError> {
  try {
    await promise
  } catch (error) {
    if (MoeEpError.isInstance(error)) return error
    throw new Error('rejected with something else than a MoeEpError', { cause: error })
  }
  throw new Error('resolved where a rejection was expected')
}

export function codesOf(errors: readonly MoeEpError[]): string[] {
  return errors.map((error) => error.code)
}
