import { randomBytes } from 'node:crypto'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { MoeEpError, argumentError } from '@moe-ep/core'
import { throwIfAborted } from '../support/abort.js'
import type { OnProgress } from '../support/progress.js'
import {
  isSafetensorsDType,
  isShape,
  lengthPrefixBytes,
  maxHeaderBytes,
  metadataKey,
  type TensorSpec,
  tensorByteLength,
} from './safetensors-format.js'

/** A tensor to be written: what it will be, and how to make its bytes when their turn comes. */
export interface TensorSource extends TensorSpec {
  readonly name: string
  /**
   * Makes the bytes (row-major, little-endian), whole or in pieces. A piece is written before the next one is asked
   * for, so one buffer may serve for all of them.
   */
  data(): Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>
}

/** What to write where. */
export interface WriteSafetensorsOptions {
  readonly path: string
  readonly tensors: readonly TensorSource[]
  /** Free text about the file. */
  readonly metadata?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
  /** Hears the data bytes written so far. */
  readonly onProgress?: OnProgress
}

/**
 * Writes a safetensors file, one piece of one tensor in memory at a time. It appears under its name only when it is
 * complete; on any failure nothing is left.
 *
 * @throws ERR_MOE_EP_ARGUMENT for wrong or doubled tensors or when a source makes more or fewer bytes than it
 * declared, ERR_MOE_EP_CONFIG when the path cannot be written, ERR_MOE_EP_ABORTED.
 */
export async function writeSafetensors(options: WriteSafetensorsOptions): Promise<void> {
  const { path, tensors, signal } = options
  const sizes = checkTensors(tensors)
  const header = encodeHeader(options, sizes)
  throwIfAborted(signal, `writing ${path}`)
  const partial = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.partial`
  try {
    const handle = await open(partial, 'wx')
    try {
      await writeAll(handle, header)
      await writeData(handle, options, sizes)
    } finally {
      await handle.close()
    }
    await rename(partial, path)
  } catch (error) {
    await rm(partial, { force: true })
    if (MoeEpError.isInstance(error) || !isSystemError(error)) throw error
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `cannot write ${path}: ${error.message}`, { cause: error })
  }
}

async function writeData(
  handle: FileHandle,
  { path, tensors, signal, onProgress }: WriteSafetensorsOptions,
  sizes: readonly number[],
): Promise<void> {
  const total = sizes.reduce((sum, size) => sum + size, 0)
  let done = 0
  onProgress?.({ done, total })
  for (const [index, tensor] of tensors.entries()) {
    const expected = sizes[index]!
    let written = 0
    for await (const piece of piecesOf(tensor)) {
      throwIfAborted(signal, `writing ${path}`)
      written += piece.byteLength
      if (written > expected) break
      await writeAll(handle, piece)
      done += piece.byteLength
      onProgress?.({ done, total })
    }
    if (written !== expected) throw argumentError(`data of tensor ${tensor.name}`, `${expected} bytes`, written)
  }
}

function piecesOf(tensor: TensorSource): Iterable<Uint8Array> | AsyncIterable<Uint8Array> {
  const data = tensor.data()
  return data instanceof Uint8Array ? [data] : data
}

async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0
  while (done < bytes.byteLength) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.byteLength - done)
    done += bytesWritten
  }
}

/** Bytes of every tensor, after checking what the sources declare. */
function checkTensors(tensors: readonly TensorSource[]): number[] {
  const names = new Set<string>()
  return tensors.map(({ name, dtype, shape }) => {
    if (name === metadataKey) throw argumentError('tensors', `no tensor named ${metadataKey}`, name)
    if (names.has(name)) throw argumentError('tensors', 'names that differ', name)
    names.add(name)
    if (!isSafetensorsDType(dtype)) throw argumentError(`dtype of tensor ${name}`, 'a safetensors dtype', dtype)
    if (!isShape(shape)) throw argumentError(`shape of tensor ${name}`, 'a list of whole numbers', shape)
    const bytes = tensorByteLength({ dtype, shape })
    if (bytes === undefined) throw argumentError(`shape of tensor ${name}`, 'fewer than 2^53 bytes', shape)
    return bytes
  })
}

/** Length prefix and JSON, padded with spaces so that the data begins at a multiple of 8 bytes. */
function encodeHeader({ tensors, metadata }: WriteSafetensorsOptions, sizes: readonly number[]): Uint8Array {
  // Entries, not property writes: a tensor may be called "__proto__".
  const entries: [string, unknown][] = metadata === undefined ? [] : [[metadataKey, metadata]]
  let begin = 0
  for (const [index, { name, dtype, shape }] of tensors.entries()) {
    const end = begin + sizes[index]!
    entries.push([name, { dtype, shape, data_offsets: [begin, end] }])
    begin = end
  }
  if (!Number.isSafeInteger(begin)) throw argumentError('tensors', 'fewer than 2^53 bytes together', begin)
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)))
  const length = Math.ceil(json.length / 8) * 8
  if (length > maxHeaderBytes) throw argumentError('tensors', `a header of at most ${maxHeaderBytes} bytes`, length)
  const header = Buffer.alloc(lengthPrefixBytes + length, ' ')
  header.writeBigUInt64LE(BigInt(length))
  json.copy(header, lengthPrefixBytes)
  return header
}

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && 'syscall' in error
}
