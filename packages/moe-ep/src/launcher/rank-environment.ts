import { randomBytes } from 'node:crypto'
import { createServer } from 'node:net'
import { MoeEpError } from '@moe-ep/core'
import type { LaunchSettings } from './launch-options.js'

/** The variables by which the ranks of one run find each other. */
export interface SharedEnvironment {
  readonly port: number
  readonly secret: string
}

/**
 * Gives a port that nobody uses now and a fresh secret.
 *
 * @throws ERR_MOE_EP_CONNECT when nothing can listen at the host
 */
export async function createSharedEnvironment(host: string): Promise<SharedEnvironment> {
  return { port: await findFreePort(host), secret: randomBytes(32).toString('hex') }
}

/** Gives the whole environment of one rank. */
export function environmentOfRank(
  rank: number,
  settings: LaunchSettings,
  shared: SharedEnvironment,
): NodeJS.ProcessEnv {
  const { ranks, nodes, host } = settings
  const inherited: NodeJS.ProcessEnv = { ...process.env }
  // A run inside another run must not see the outer one's nodes.
  delete inherited['MOE_EP_NODES']
  delete inherited['LOCAL_WORLD_SIZE']
  return {
    ...inherited,
    ...settings.environment,
    RANK: String(rank),
    WORLD_SIZE: String(ranks),
    LOCAL_RANK: String(rank),
    ...(nodes === undefined ? { LOCAL_WORLD_SIZE: String(ranks) } : { MOE_EP_NODES: String(nodes) }),
    MASTER_ADDR: host,
    MASTER_PORT: String(shared.port),
    MOE_EP_SECRET: shared.secret,
  }
}

function findFreePort(host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', (cause) => {
      reject(new MoeEpError('ERR_MOE_EP_CONNECT', `cannot listen at ${host}: ${cause.message}`, { cause }))
    })
    server.listen({ host: host.replace(/^\[(.*)\]$/, '$1'), port: 0 }, () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address ? address.port : 0))
    })
  })
}
