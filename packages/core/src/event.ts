import type { Device } from './device.js'
import { type EventHandle, native } from './native.js'
import { type WaitOptions, withWaitOptions } from './wait-options.js'

/** A point in the work of a stream: `stream.record(event)` sets it, other streams and the host can wait for it. */
export class Event {
  readonly device: Device
  readonly handle: EventHandle

  constructor(device: Device) {
    this.device = device
    this.handle = native().createEvent()
  }

  /** Whether the newest recording is complete (true when there is none). */
  query(): boolean {
    return native().eventQuery(this.handle)
  }

  /**
   * Resolves when the newest recording is complete.
   * @throws the failure that the recorded stream had at that point; ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_ABORTED.
   */
  async synchronize(options: WaitOptions = {}): Promise<void> {
    await withWaitOptions(native().eventSynchronize(this.handle), 'event.synchronize', options)
  }

  /** Microseconds on the machine's monotonic clock at which the newest recording completed; 0 before the first. */
  get completedAtUs(): number {
    return native().eventTime(this.handle)
  }
}
