import { type CpuDevice, CudaDevice, getCudaDeviceOfRank, getDevice } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import type { BenchOptions } from './command/bench-options.js'
import { isBetweenRanks } from './command/operation-names.js'
import { CpuStopwatch } from './measure/cpu-stopwatch.js'
import { CudaStopwatch } from './measure/cuda-stopwatch.js'
import { Meeting } from './measure/meeting.js'
import type { Stopwatch } from './measure/stopwatch.js'

/**
 * The device that a rank measures on; all ranks are of one machine.
 * @throws ERR_MOE_EP_NO_DEVICE.
 */
export function deviceOfRank(
  { device, shareGpus }: BenchOptions,
  { rank, worldSize }: { readonly rank: number; readonly worldSize: number },
): CpuDevice | CudaDevice {
  if (device === 'cpu') return getDevice('cpu')
  if (device === 'cuda') return getCudaDeviceOfRank({ localRank: rank, localWorldSize: worldSize, shareGpus })
  return getDevice(device as `cuda:${number}`)
}

/** What a rank is timed with. */
export interface Stopwatches {
  /** For operations of one rank. */
  readonly alone: Stopwatch
  /** For operations between ranks; collective. */
  readonly together: Stopwatch
  close(): Promise<void>
}

/** Collective. On the cpu all operations are timed together. */
export async function createStopwatches(
  device: CpuDevice | CudaDevice,
  group: ProcessGroup,
  options: Pick<BenchOptions, 'threads' | 'ops'>,
): Promise<Stopwatches> {
  if (!(device instanceof CudaDevice)) {
    const stopwatch = await CpuStopwatch.create(group, options)
    return { alone: stopwatch, together: stopwatch, close: () => stopwatch.close() }
  }
  const alone = new CudaStopwatch(device)
  // GPUs that cannot reach each other still do what concerns one rank.
  if (!options.ops.some(isBetweenRanks)) return { alone, together: alone, close: () => alone.close() }
  const together = new CudaStopwatch(device, await Meeting.create(group, device))
  return {
    ...{ alone, together },
    async close() {
      await alone.close()
      await together.close()
    },
  }
}
