import type { Device } from './device.js'
import { argumentError, MoeEpError } from './error.js'

/** @throws ERR_MOE_EP_ARGUMENT. */
export function requireByteLength(byteLength: number): number {
  if (!Number.isSafeInteger(byteLength) || byteLength < 0)
    throw argumentError('byteLength', 'bytes, 0 or more', byteLength)
  return byteLength
}

/** @throws ERR_MOE_EP_ARGUMENT unless the device is the cpu. */
export function requireCpu(device: Device): void {
  if (device.kind !== 'cpu') throw argumentError('device', 'the cpu device', device.name)
}

/** @throws ERR_MOE_EP_ARGUMENT unless the device is a cuda device. */
export function requireCuda(device: Device): asserts device is Device & { readonly kind: 'cuda' } {
  if (device.kind !== 'cuda') throw argumentError('device', 'a cuda device', device.name)
}

/** An error of a device that is not there. */
export function noDevice(name: string, reason: string, cause?: unknown): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_NO_DEVICE', `${name}: ${reason}`, { cause })
}
