import { markAsUntransferable } from 'node:worker_threads'
import { argumentError, MoeEpError } from './error.js'
import { type MemoryRange, MemoryViews } from './memory-views.js'
import { type MemoryHandle, native } from './native.js'
import type { Device } from './device.js'
import { requireByteLength, requireCpu } from './device-checks.js'

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
  readonly #views: MemoryViews
  #pointer: bigint | undefined
  /** The ArrayBuffer that owns the bytes, if one does. */
  #source: ArrayBuffer | undefined
  #closed = false

  /** @internal Use `device.allocate`, `wrapArrayBuffer` or `wrapPointer`. */
  constructor(device: Device, handle: MemoryHandle, source?: ArrayBuffer) {
    this.#source = source
    this.device = device
    this.handle = handle
    this.byteLength = native().memoryByteLength(handle)
    this.#views = new MemoryViews(this.byteLength, (byteOffset, byteLength) =>
      native().memoryView(handle, byteOffset, byteLength),
    )
  }

  /** Address of the first byte. */
  get pointer(): bigint {
    this.#requireOpen()
    return (this.#pointer ??= native().memoryPointer(this.handle))
  }

  /**
   * The bytes themselves, without a copy (cpu memory). `close()` detaches it.
   * @throws ERR_MOE_EP_UNSUPPORTED when they are more than an ArrayBuffer can hold, where `data` of tensors in the memory still works, and
   * for memory of a cuda device.
   */
  get arrayBuffer(): ArrayBuffer {
    this.#requireOpen()
    return this.#views.whole
  }

  /**
   * Where a range of the bytes is seen, without a copy. `close()` detaches it.
   * @throws ERR_MOE_EP_UNSUPPORTED when the range is more than an ArrayBuffer can hold.
   * @internal
   */
  range(byteOffset: number, byteLength: number): MemoryRange {
    this.#requireOpen()
    return this.#views.range(byteOffset, byteLength)
  }

  /** True after `close()`, and once the ArrayBuffer whose bytes these are was transferred to somebody else. */
  get closed(): boolean {
    if (this.byteLength > 0 && this.#source?.byteLength === 0) this.close()
    return this.#closed
  }

  /**
   * Gives the bytes back as soon as queued work is done, and detaches all views of them. Bytes of a view that cannot be detached, because
   * they were moved to another ArrayBuffer, stay until that one is collected. Further use is ERR_MOE_EP_RELEASED.
   */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#source = undefined
    native().memoryClose(this.handle, this.#views.takeAll())
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #requireOpen(): void {
    if (this.closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', 'the memory was closed')
  }
}

/**
 * Memory over the bytes of a typed array or ArrayBuffer, without a copy. The buffer stays alive as long as the memory, and cannot be
 * transferred to another thread any more. Do not `transfer()` it while work is queued: it would take the bytes away from that work.
 * @throws ERR_MOE_EP_ARGUMENT for a resizable or detached buffer.
 */
export function wrapArrayBuffer(device: Device, source: ArrayBufferView | ArrayBuffer): Memory {
  requireCpu(device)
  requireAttached(ArrayBuffer.isView(source) ? source.buffer : source)
  const view = ArrayBuffer.isView(source) ? source : new Uint8Array(source)
  const buffer = view.buffer
  if ((buffer as { resizable?: boolean }).resizable === true) {
    throw argumentError('source', 'a buffer of fixed length', 'a resizable ArrayBuffer')
  }
  if (!(buffer instanceof ArrayBuffer)) throw argumentError('source', 'an ArrayBuffer or a view of one', buffer)
  markAsUntransferable(buffer)
  return new Memory(device, native().wrapBuffer(buffer, view.byteOffset, view.byteLength), buffer)
}

/**
 * Memory that somebody else owns: `byteLength` bytes at `pointer`, which means something on `device`. The caller keeps it mapped until
 * the memory was closed and the streams that use it were awaited.
 */
export function wrapPointer(device: Device, pointer: bigint, byteLength: number): Memory {
  if (typeof pointer !== 'bigint' || pointer <= 0n) throw argumentError('pointer', 'a positive bigint', pointer)
  return new Memory(device, native().wrapPointer(device.ordinal, pointer, requireByteLength(byteLength)))
}

/** Lengths do not tell: an empty buffer has none either. */
function requireAttached(buffer: ArrayBufferLike): void {
  try {
    void new Uint8Array(buffer)
  } catch {
    throw argumentError('source', 'a buffer that is not detached', buffer)
  }
}
