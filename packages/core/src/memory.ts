import { argumentError, MoeEpError } from './error.js'
import { type MemoryHandle, native } from './native.js'
import type { Device } from './device.js'

/**
 * A range of bytes on a device.
 *
 * Queued work keeps the bytes it uses: closing takes effect when that work is done. Without `close()` the bytes go with the
 * last object that refers to them.
 */
export class Memory implements Disposable {
  readonly device: Device
  readonly byteLength: number
  readonly handle: MemoryHandle
  #view: ArrayBuffer | undefined
  #closed = false

  /** @internal Use `device.allocate`, `wrapArrayBuffer` or `wrapPointer`. */
  constructor(device: Device, handle: MemoryHandle) {
    this.device = device
    this.handle = handle
    this.byteLength = native().memoryByteLength(handle)
  }

  /** Address of the first byte. */
  get pointer(): bigint {
    this.#requireOpen()
    return native().memoryPointer(this.handle)
  }

  /** The bytes themselves, without a copy. `close()` detaches it. */
  get arrayBuffer(): ArrayBuffer {
    this.#requireOpen()
    return (this.#view ??= native().memoryArrayBuffer(this.handle))
  }

  get closed(): boolean {
    return this.#closed
  }

  /** Gives the bytes back as soon as queued work is done, and detaches `arrayBuffer`. Further use is ERR_MOE_EP_RELEASED. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    native().memoryClose(this.handle, this.#view)
    this.#view = undefined
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #requireOpen(): void {
    if (this.#closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the memory was closed')
  }
}

/**
 * Memory over the bytes of a typed array or ArrayBuffer, without a copy. The buffer stays alive as long as the memory.
 * @throws ERR_MOE_EP_ARGUMENT for a resizable or detached buffer.
 */
export function wrapArrayBuffer(device: Device, source: ArrayBufferView | ArrayBuffer): Memory {
  requireCpu(device)
  const view = ArrayBuffer.isView(source) ? source : new Uint8Array(source)
  const buffer = view.buffer
  if ((buffer as { resizable?: boolean }).resizable === true) {
    throw argumentError('source', 'a buffer of fixed length', 'a resizable ArrayBuffer')
  }
  if (!(buffer instanceof ArrayBuffer)) throw argumentError('source', 'an ArrayBuffer or a view of one', buffer)
  return new Memory(device, native().wrapBuffer(buffer, view.byteOffset, view.byteLength))
}

/**
 * Memory that somebody else owns: `byteLength` bytes at `pointer`. The caller keeps it mapped until the memory was closed and
 * the streams that use it were awaited.
 */
export function wrapPointer(device: Device, pointer: bigint, byteLength: number): Memory {
  requireCpu(device)
  if (typeof pointer !== 'bigint' || pointer <= 0n) throw argumentError('pointer', 'a positive bigint', pointer)
  if (!Number.isSafeInteger(byteLength) || byteLength < 0) throw argumentError('byteLength', 'bytes, 0 or more', byteLength)
  return new Memory(device, native().wrapPointer(pointer, byteLength))
}

function requireCpu(device: Device): void {
  if (device.kind !== 'cpu') throw argumentError('device', 'the cpu device', device.name)
}
