import { CudaDevice } from './cuda-device.js'
import { CpuDevice, type Device } from './device.js'
import { noDevice } from './device-checks.js'
import { argumentError, MoeEpError } from './error.js'
import { requireInteger } from './integer-checks.js'
import { unsupportedPlatform } from './load-addon.js'
import { native, type NativeCudaDevice } from './native.js'

/** What `listDevices()` says of one device. */
export interface DeviceInfo {
  /** `cpu`, `cuda:<ordinal>`, or `cuda` where there is none at all. */
  readonly name: string
  readonly available: boolean
  /** Why it is not available. */
  readonly reason?: string
  /** Name of the GPU. */
  readonly gpu?: string
  readonly memoryBytes?: number
}

const deviceNames = /^(?:cpu|cuda:(\d+))$/
const deviceNamesText = '"cpu" or "cuda:<ordinal>"'

let cpu: CpuDevice | undefined
const cudaDevices = new Map<number, CudaDevice>()

/** All devices that this build knows of, with the reason for each that cannot be used. Never throws. */
export function listDevices(): readonly DeviceInfo[] {
  const reason = nativeFailure()?.message
  if (reason !== undefined) return ['cpu', 'cuda'].map((name) => ({ name, available: false, reason }))
  return [{ name: 'cpu', available: true }, ...listCudaDevices()]
}

function listCudaDevices(): readonly DeviceInfo[] {
  const { devices, reason } = native().cudaDevices()
  if (devices.length === 0) return [{ name: 'cuda', available: false, reason }]
  return devices.map(({ gpu, memoryBytes, ...rest }, ordinal) => ({
    name: `cuda:${ordinal}`,
    available: rest.reason === undefined,
    ...(rest.reason !== undefined && { reason: rest.reason }),
    gpu,
    memoryBytes,
  }))
}

function nativeFailure(): MoeEpError | undefined {
  const unsupported = unsupportedPlatform()
  if (unsupported !== undefined) return new MoeEpError('ERR_MOE_EP_NO_DEVICE', unsupported)
  try {
    native()
    return undefined
  } catch (error) {
    return MoeEpError.from(error)
  }
}

/** @throws ERR_MOE_EP_NO_DEVICE, with the reason, or ERR_MOE_EP_DUPLICATE_CORE when there is no native code for the device. */
function requireNative(name: string): void {
  const failure = nativeFailure()
  if (failure?.code === 'ERR_MOE_EP_DUPLICATE_CORE') throw failure
  if (failure !== undefined) throw noDevice(name, failure.message, failure)
}

/**
 * The device of this name.
 * @throws ERR_MOE_EP_NO_DEVICE when it is not there, with the reason; ERR_MOE_EP_DUPLICATE_CORE; ERR_MOE_EP_ARGUMENT for a name that
 * is none.
 */
export function getDevice(name: 'cpu'): CpuDevice
export function getDevice(name: `cuda:${number}`): CudaDevice
export function getDevice(name: string): Device
export function getDevice(name: string): Device {
  const match = deviceNames.exec(name)
  if (match === null) throw argumentError('name', deviceNamesText, name)
  if (name === 'cpu' && cpu !== undefined) return cpu
  requireNative(name)
  return name === 'cpu' ? (cpu = new CpuDevice()) : cudaDevice(Number(match[1]))
}

function cudaDevice(ordinal: number): CudaDevice {
  const known = cudaDevices.get(ordinal)
  if (known !== undefined) return known
  const { devices, reason } = native().cudaDevices()
  const facts: NativeCudaDevice | undefined = devices[ordinal]
  if (facts === undefined) {
    throw noDevice(`cuda:${ordinal}`, devices.length === 0 ? reason : `this machine has ${devices.length} GPUs`)
  }
  if (facts.reason !== undefined) throw noDevice(`cuda:${ordinal}`, facts.reason)
  const device = new CudaDevice(ordinal, facts)
  cudaDevices.set(ordinal, device)
  return device
}

/**
 * The device that tensors are made on when none is named: MOE_EP_DEVICE, else the cpu.
 * @throws ERR_MOE_EP_CONFIG when MOE_EP_DEVICE is no name of a device; else as {@link getDevice}.
 */
export function getDefaultDevice(): Device {
  const name = process.env['MOE_EP_DEVICE'] || 'cpu'
  if (!deviceNames.test(name))
    throw new MoeEpError(
      'ERR_MOE_EP_CONFIG',
      `MOE_EP_DEVICE: expected ${deviceNamesText}, received ${JSON.stringify(name)}`,
    )
  return getDevice(name)
}

/** Which of the ranks of a machine asks. */
export interface LocalRank {
  readonly localRank: number
  readonly localWorldSize: number
  /** Lets several ranks share a GPU. @default false */
  readonly shareGpus?: boolean
}

/**
 * The GPU of one of the ranks that run on this machine: that of the same number.
 * @throws ERR_MOE_EP_NO_DEVICE when there are fewer GPUs than ranks, unless `shareGpus` allows that, none at all, or one that this
 * build cannot use; ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_DUPLICATE_CORE.
 */
export function getCudaDeviceOfRank({ localRank, localWorldSize, shareGpus = false }: LocalRank): CudaDevice {
  requireInteger('localWorldSize', localWorldSize, 1)
  requireInteger('localRank', localRank, 0, localWorldSize - 1)
  requireNative('cuda')
  const { devices, reason } = native().cudaDevices()
  if (devices.length === 0) throw noDevice('cuda', reason)
  if (localWorldSize > devices.length && !shareGpus) {
    throw noDevice(
      'cuda',
      `${localWorldSize} ranks on this machine, but ${devices.length} GPUs; let ranks share them (shareGpus) or start fewer`,
    )
  }
  return cudaDevice(localRank % devices.length)
}
