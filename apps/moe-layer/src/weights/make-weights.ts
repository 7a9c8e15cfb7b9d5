import { argumentError } from '@moe-ep/core'
import { fillFromTable, normalTable, normalTableBf16 } from '../random/normal-values.js'
import { randomStream } from '../random/random-stream.js'
import type { OnProgress } from '../support/progress.js'
import { expertNames, gateName, type MlpTensorNames, sharedExpertNames } from './moe-tensor-names.js'
import { type TensorSource, writeSafetensors } from './safetensors-writer.js'

/** What weights to make. */
export interface MakeWeightsOptions {
  /** The file to write. */
  readonly path: string
  /** K: elements of a token row. */
  readonly hidden: number
  /** I: rows of each expert's gate and up projections; the shared expert's too. */
  readonly intermediate: number
  /** E: routed experts. */
  readonly experts: number
  /** @default 0 */
  readonly sharedExperts?: 0 | 1
  /** Any safe integer; the same seed gives the same file. */
  readonly seed: number
  readonly dtype: 'bf16' | 'f32'
  /** Further text for the file, such as the model's name and top-k. */
  readonly metadata?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
  /** Hears the bytes written so far. */
  readonly onProgress?: OnProgress
}

/** Elements made at a time. */
const pieceElements = 2 ** 20

/**
 * Writes a safetensors file with one MoE layer's made-up weights under the names of Qwen3-MoE. Values are roughly
 * normal with deviation 1/sqrt(inputs of the projection), so that inputs of size 1 give outputs of size 1.
 * The file's metadata carry all numbers as text. Memory stays at a few MiB whatever the sizes.
 *
 * @throws ERR_MOE_EP_ARGUMENT for bad sizes or seed, else as {@link writeSafetensors}.
 */
export async function makeWeights(options: MakeWeightsOptions): Promise<void> {
  const { path, hidden, intermediate, experts, sharedExperts = 0, seed, dtype, metadata, signal, onProgress } = options
  for (const [name, value] of Object.entries({ hidden, intermediate, experts })) {
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(name, 'a positive integer', value)
  }
  if (sharedExperts !== 0 && sharedExperts !== 1) throw argumentError('sharedExperts', '0 or 1', sharedExperts)
  if (!Number.isSafeInteger(seed)) throw argumentError('seed', 'an integer', seed)
  if (dtype !== 'bf16' && dtype !== 'f32') throw argumentError('dtype', "'bf16' or 'f32'", dtype)

  const numbers = { hidden, intermediate, experts, sharedExperts, seed }
  await writeSafetensors({
    path,
    tensors: layerTensors(options),
    metadata: { ...metadata, ...Object.fromEntries(Object.entries(numbers).map(([key, value]) => [key, `${value}`])) },
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  })
}

function layerTensors(options: MakeWeightsOptions): TensorSource[] {
  const { hidden, intermediate, experts, sharedExperts = 0 } = options
  const make = valueMaker(options)
  const mlp = ({ gateProj, upProj, downProj }: MlpTensorNames) => [
    make(gateProj, [intermediate, hidden]),
    make(upProj, [intermediate, hidden]),
    make(downProj, [hidden, intermediate]),
  ]
  return [
    make(gateName(0), [experts, hidden]),
    ...Array.from({ length: experts }, (_, expert) => mlp(expertNames(0, expert))).flat(),
    ...(sharedExperts === 1 ? mlp(sharedExpertNames(0)) : []),
  ]
}

/** Makes sources of random [outputs, inputs] tensors; tables and the piece buffer are shared by all of them. */
function valueMaker({ seed, dtype }: MakeWeightsOptions): (name: string, shape: [number, number]) => TensorSource {
  const buffer = dtype === 'bf16' ? new Uint16Array(pieceElements) : new Float32Array(pieceElements)
  const makeTable = dtype === 'bf16' ? normalTableBf16 : normalTable
  const tables = new Map<number, Uint16Array | Float32Array>()
  return (name, shape) => ({
    name,
    dtype: dtype === 'bf16' ? 'BF16' : 'F32',
    shape,
    *data() {
      const [outputs, inputs] = shape
      const table = tables.get(inputs) ?? makeTable(1 / Math.sqrt(inputs))
      tables.set(inputs, table)
      const stream = randomStream(seed, name)
      const elements = outputs * inputs
      for (let first = 0; first < elements; first += pieceElements) {
        const piece = buffer.subarray(0, Math.min(pieceElements, elements - first))
        fillFromTable(piece, { table, stream, first })
        yield new Uint8Array(piece.buffer, 0, piece.byteLength)
      }
    },
  })
}
