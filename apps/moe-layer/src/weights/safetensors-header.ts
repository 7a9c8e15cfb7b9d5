import { MoeEpError } from '@moe-ep/core'
import { findDuplicateKey } from './duplicate-key.js'
import {
  isSafetensorsDType,
  isShape,
  lengthPrefixBytes,
  maxHeaderBytes,
  metadataKey,
  type TensorSpec,
  tensorByteLength,
} from './safetensors-format.js'

/** A tensor and the place of its bytes. */
export interface TensorPlace extends TensorSpec {
  readonly byteLength: number
  /** Offset of its first byte behind the header. */
  readonly begin: number
}

/** Everything a header says. */
export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorPlace>
  /** Free text that the writer left. */
  readonly metadata: Readonly<Record<string, string>>
}

/** Error for a file at `path` that is not what it claims to be. */
export function formatError(path: string, problem: string, cause?: unknown): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_FILE_FORMAT', `${path}: ${problem}`, { cause, details: { path } })
}

/**
 * The header length that the first bytes of a file state.
 * @throws ERR_MOE_EP_FILE_FORMAT when a file of `fileBytes` bytes cannot have such a header.
 */
export function checkHeaderLength(
  prefix: Uint8Array,
  { path, fileBytes }: { path: string; fileBytes: number },
): number {
  if (prefix.length < lengthPrefixBytes) {
    throw formatError(path, `not a safetensors file: ${fileBytes} bytes are too few for the header length`)
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true)
  if (length > BigInt(maxHeaderBytes)) {
    throw formatError(path, `states a header of ${length} bytes; at most ${maxHeaderBytes} are allowed`)
  }
  const available = fileBytes - lengthPrefixBytes
  if (length > BigInt(available)) {
    throw formatError(path, `states a header of ${length} bytes, but only ${available} bytes follow`)
  }
  return Number(length)
}

/**
 * The header in these bytes, every statement of it checked: each tensor's shape, dtype and range fit one another, and
 * together the tensors cover the `dataBytes` bytes behind the header once, without gaps.
 *
 * @throws ERR_MOE_EP_FILE_FORMAT with the tensor's name and what is wrong with it.
 */
export function parseHeader(
  bytes: Uint8Array,
  { path, dataBytes }: { path: string; dataBytes: number },
): SafetensorsHeader {
  const entries = parseJson(bytes, path)
  const tensors = new Map<string, TensorPlace>()
  let metadata: Record<string, string> = {}
  for (const [name, value] of Object.entries(entries)) {
    if (name === metadataKey) metadata = checkMetadata(value, path)
    else tensors.set(name, checkTensor(value, { path, name, dataBytes }))
  }
  checkCoverage(tensors, { path, dataBytes })
  return { tensors, metadata }
}

function parseJson(bytes: Uint8Array, path: string): Record<string, unknown> {
  let text: string
  let parsed: unknown
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    parsed = JSON.parse(text)
  } catch (error) {
    throw formatError(path, 'the header is not JSON in UTF-8', error)
  }
  if (!isRecord(parsed)) throw formatError(path, 'the header is not a JSON object')
  const duplicate = findDuplicateKey(text)
  if (duplicate !== undefined) throw formatError(path, `the header has the key ${quote(duplicate)} twice`)
  return parsed
}

function checkMetadata(value: unknown, path: string): Record<string, string> {
  if (!isRecord(value) || !Object.values(value).every((text) => typeof text === 'string')) {
    throw formatError(path, `${metadataKey} is not an object of strings`)
  }
  return value as Record<string, string>
}

function checkTensor(
  value: unknown,
  { path, name, dataBytes }: { path: string; name: string; dataBytes: number },
): TensorPlace {
  const fail = (problem: string) => formatError(path, `tensor ${quote(name)}: ${problem}`)
  if (!isRecord(value)) throw fail('its entry is not an object')
  const { dtype, shape, data_offsets: offsets } = value
  if (!isSafetensorsDType(dtype)) throw fail(`dtype ${quote(dtype)} is not known`)
  if (!isShape(shape)) throw fail(`shape ${quote(shape)} is not a list of whole numbers`)
  if (!isShape(offsets) || offsets.length !== 2) throw fail(`data_offsets ${quote(offsets)} are not two whole numbers`)
  const [begin, end] = offsets as [number, number]
  if (begin > end || end > dataBytes) {
    throw fail(`data_offsets ${quote(offsets)} lie outside the ${dataBytes} bytes behind the header`)
  }
  const byteLength = tensorByteLength({ dtype, shape })
  if (byteLength === undefined) throw fail(`shape ${quote(shape)} has too many elements`)
  if (byteLength !== end - begin) {
    throw fail(`${dtype} ${quote(shape)} takes ${byteLength} bytes, but data_offsets hold ${end - begin}`)
  }
  return { dtype, shape, byteLength, begin }
}

/** The format allows no bytes that no tensor owns: they could hide another file, or show that a range is a lie. */
function checkCoverage(
  tensors: ReadonlyMap<string, TensorPlace>,
  { path, dataBytes }: { path: string; dataBytes: number },
): void {
  const places = [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.byteLength - b.byteLength)
  let covered = 0
  let previous = ''
  for (const [name, { begin, byteLength }] of places) {
    if (begin < covered) throw formatError(path, `tensors ${quote(previous)} and ${quote(name)} overlap`)
    if (begin > covered) throw formatError(path, `bytes ${covered} to ${begin} behind the header belong to no tensor`)
    covered += byteLength
    previous = name
  }
  if (covered !== dataBytes) {
    throw formatError(path, `bytes ${covered} to ${dataBytes} behind the header belong to no tensor`)
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** For messages: what came, short enough to read even when the file is hostile. */
function quote(value: unknown): string {
  const text = JSON.stringify(value) ?? 'undefined'
  return text.length > 100 ? `${text.slice(0, 100)}...` : text
}
