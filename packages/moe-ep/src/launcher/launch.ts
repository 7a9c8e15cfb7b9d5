import { MoeEpError } from '@moe-ep/core'
import { type LaunchOptions, resolveLaunchOptions } from './launch-options.js'
import type { LaunchResult } from './launch-result.js'
import { startProcessRank } from './process-rank.js'
import { createSharedEnvironment, environmentOfRank } from './rank-environment.js'
import { Supervisor } from './supervisor.js'
import { startThreadRank } from './thread-rank.js'

/**
 * Runs a script once per rank and gives how each ended, once all have. Ranks find each other through the variables
 * RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE (or MOE_EP_NODES), MASTER_ADDR, MASTER_PORT and MOE_EP_SECRET,
 * which `connect()` reads.
 *
 * When a rank fails, the others get `graceMs` to end by themselves, then SIGTERM, then after two more seconds
 * SIGKILL (threads are terminated). A deadline or an abort begins at SIGTERM. While ranks run, SIGINT, SIGTERM and
 * SIGHUP of this process are passed on to them instead of ending it. Should this process die, however it dies, the
 * channel from it to every rank process closes, and the ranks end by themselves; a rank whose JavaScript thread is
 * blocked does so when it is free again.
 *
 * That a rank failed is a result and no rejection: pass it to `assertLaunched`.
 *
 * @throws ERR_MOE_EP_ARGUMENT for a bad option, ERR_MOE_EP_CONNECT when the host is not an address of this machine,
 *   ERR_MOE_EP_ABORTED when `signal` has aborted before anything was started
 */
export async function launch(options: LaunchOptions): Promise<LaunchResult> {
  const settings = resolveLaunchOptions(options)
  const shared = await createSharedEnvironment(settings.host)
  if (settings.signal?.aborted) {
    throw new MoeEpError('ERR_MOE_EP_ABORTED', 'launch was aborted', { cause: settings.signal.reason })
  }
  const start = settings.mode === 'thread' ? startThreadRank : startProcessRank
  const ranks = Array.from({ length: settings.ranks }, (_, rank) =>
    start(rank, settings, environmentOfRank(rank, settings, shared)),
  )
  return new Supervisor(ranks, settings).run()
}
