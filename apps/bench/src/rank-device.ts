import { type CpuDevice, CudaDevice, getCudaDeviceOfRank, getDevice } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import type { BenchOptions } from './command/bench-options.js'
import { CpuStopwatch } from './measure/cpu-stopwatch.js'
import { CudaStopwatch } from './measure/cuda-stopwatch.js'
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

/** Collective. */
export async function createStopwatch(
  device: CpuDevice | CudaDevice,
  group: ProcessGroup,
  options: { readonly threads: number },
): Promise<Stopwatch> {
  return device instanceof CudaDevice ? new CudaStopwatch(device) : CpuStopwatch.create(group, options)
}
