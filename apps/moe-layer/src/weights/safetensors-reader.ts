import { type FileHandle, open } from 'node:fs/promises'
import { MoeEpError, bf16ToF32Array, decode } from '@moe-ep/core'
import { throwIfAborted } from '../support/abort.js'
import { lengthPrefixBytes, type SafetensorsDType, type TensorSpec } from './safetensors-format.js'
import {
  type SafetensorsHeader,
  type TensorPlace,
  checkHeaderLength,
  formatError,
  parseHeader,
} from './safetensors-header.js'

/** What a file holds under a name. */
export interface TensorInfo extends TensorSpec {
  readonly byteLength: number
}

/** A tensor's bytes in their stored form: row-major, little-endian, at the start of a buffer of their own. */
export interface StoredTensor extends TensorSpec {
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** Lets a long read be cancelled. */
export interface ReadOptions {
  readonly signal?: AbortSignal
}

/** Bytes that one system call asks for: far below what any platform refuses, and often enough to notice a signal. */
const readChunkBytes = 64 * 2 ** 20

/**
 * The safetensors file at `path`, its header read and checked; tensors are read when they are asked for. Close it.
 *
 * @throws ERR_MOE_EP_CONFIG when it cannot be opened, ERR_MOE_EP_FILE_FORMAT when it is not what its header says.
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  let handle: FileHandle
  try {
    handle = await open(path, 'r')
  } catch (error) {
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `cannot open ${path}: ${(error as Error).message}`, { cause: error })
  }
  try {
    const status = await handle.stat()
    if (!status.isFile()) throw formatError(path, 'is not a regular file')
    const fileBytes = status.size
    const prefix = await readRange(handle, { path, position: 0, byteLength: Math.min(lengthPrefixBytes, fileBytes) })
    const headerBytes = checkHeaderLength(prefix, { path, fileBytes })
    const dataStart = lengthPrefixBytes + headerBytes
    const json = await readRange(handle, { path, position: lengthPrefixBytes, byteLength: headerBytes })
    const header = parseHeader(json, { path, dataBytes: fileBytes - dataStart })
    return new SafetensorsFile({ path, handle, header, dataStart })
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** An open safetensors file; made by {@link openSafetensors}. */
export class SafetensorsFile {
  readonly path: string
  readonly metadata: Readonly<Record<string, string>>
  readonly #places: ReadonlyMap<string, TensorPlace>
  readonly #dataStart: number
  #handle: FileHandle | undefined

  /** @internal */
  constructor(options: { path: string; handle: FileHandle; header: SafetensorsHeader; dataStart: number }) {
    this.path = options.path
    this.metadata = options.header.metadata
    this.#places = options.header.tensors
    this.#dataStart = options.dataStart
    this.#handle = options.handle
  }

  /** All tensors of the file by name. */
  get tensors(): ReadonlyMap<string, TensorInfo> {
    return this.#places
  }

  /**
   * The stored bytes of one tensor. Nothing else of the file is read.
   *
   * @throws ERR_MOE_EP_FILE_FORMAT when there is no such tensor or the file has shrunk, ERR_MOE_EP_OUT_OF_MEMORY,
   * ERR_MOE_EP_RELEASED after close, ERR_MOE_EP_ABORTED.
   */
  async read(name: string, { signal }: ReadOptions = {}): Promise<StoredTensor> {
    if (this.#handle === undefined) throw new MoeEpError('ERR_MOE_EP_RELEASED', `${this.path} is closed`)
    const place = this.#places.get(name)
    if (place === undefined) throw formatError(this.path, `has no tensor ${JSON.stringify(name)}`)
    const { dtype, shape, byteLength, begin } = place
    const position = this.#dataStart + begin
    const bytes = await readRange(this.#handle, { path: this.path, position, byteLength, signal })
    return { dtype, shape, bytes }
  }

  /**
   * The values of an F32, BF16 or F16 tensor as f32, exactly.
   *
   * @throws ERR_MOE_EP_FILE_FORMAT for any other dtype; else as {@link read}.
   */
  async readFloat32(name: string, options: ReadOptions = {}): Promise<Float32Array<ArrayBuffer>> {
    const info = this.#places.get(name)
    if (info !== undefined && !(info.dtype in wideners)) {
      throw formatError(this.path, `tensor ${JSON.stringify(name)} is ${info.dtype}; expected F32, BF16 or F16`)
    }
    const { dtype, bytes } = await this.read(name, options)
    return wideners[dtype]!(bytes.buffer)
  }

  /** Closes the file. Closing twice is fine. */
  async close(): Promise<void> {
    const handle = this.#handle
    this.#handle = undefined
    await handle?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

const wideners: Partial<Record<SafetensorsDType, (buffer: ArrayBuffer) => Float32Array<ArrayBuffer>>> = {
  F32: (buffer) => new Float32Array(buffer),
  BF16: (buffer) => bf16ToF32Array(new Uint16Array(buffer)) as Float32Array<ArrayBuffer>,
  F16: (buffer) => decode('f16', new Uint16Array(buffer)) as Float32Array<ArrayBuffer>,
}

interface Range {
  readonly path: string
  readonly position: number
  readonly byteLength: number
  readonly signal?: AbortSignal | undefined
}

async function readRange(
  handle: FileHandle,
  { path, position, byteLength, signal }: Range,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = allocate(byteLength, path)
  let done = 0
  while (done < byteLength) {
    throwIfAborted(signal, `reading ${path}`)
    const length = Math.min(readChunkBytes, byteLength - done)
    const { bytesRead } = await handle.read(bytes, done, length, position + done)
    if (bytesRead === 0) throw formatError(path, `ends at byte ${position + done}, while it was being read`)
    done += bytesRead
  }
  return bytes
}

function allocate(byteLength: number, path: string): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(byteLength)
  } catch (error) {
    throw new MoeEpError('ERR_MOE_EP_OUT_OF_MEMORY', `no memory for ${byteLength} bytes of ${path}`, { cause: error })
  }
}
