import type { Device } from './device.js'
import { type EventHandle, native } from './native.js'
import { requireWaitOptions, type WaitOptions, withWaitOptions } from './wait-options.js'

/**
 * A point in the work of a stream: `stream.record(event)` sets it, other streams and the host can wait for it.
 *
 * Waiting means the newest recording at the time of the call; recording the event again, on whatever stream, moves nobody who waits
 * already. An event that is recorded inside a graph capture is not moved by the capture but by each `graph.launch`, at once: what is
 * asked after the launch refers to that launch.
 */
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
   * @throws the failure that the recorded stream had at that point; ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_TIMEOUT, ERR_MOE_EP_ABORTED;
   * ERR_MOE_EP_CAPTURE while a capture runs that recorded it.
   */
  async synchronize(options: WaitOptions = {}): Promise<void> {
    requireWaitOptions(options)
    await withWaitOptions(native().eventSynchronize(this.handle), 'event.synchronize', options)
  }

  /** Microseconds on the machine's monotonic clock at which the newest recording completed; 0 until it has. */
  get completedAtUs(): number {
    return native().eventTime(this.handle)
  }
}
