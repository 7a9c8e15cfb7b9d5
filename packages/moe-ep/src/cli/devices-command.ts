import { listDevices } from '@moe-ep/core'

/** Prints one line per device and gives the exit code. */
export function devicesCommand(): number {
  for (const { name, available, reason } of listDevices()) {
    process.stdout.write(`${name}\t${available ? 'available' : `not available: ${reason ?? 'unknown reason'}`}\n`)
  }
  return 0
}
