import { argumentError } from '@moe-ep/core'
import { type WeightsDType, weightsDTypes } from '../presets/model-preset.js'
import type { OnProgress } from '../support/progress.js'
import { requireDiskSpace } from './disk-space.js'
import { layerTensors } from './layer-tensors.js'
import type { TensorNaming } from './moe-tensor-names.js'
import { RandomTensors } from './random-tensor.js'
import { tensorByteLength } from './safetensors-format.js'
import { type TensorSource, writeSafetensors } from './safetensors-writer.js'

/** What a file of made weights holds. */
export interface MadeWeights {
  /** K: elements of a token row. */
  readonly hidden: number
  /** I: rows of each expert's gate and up projections; the shared expert's too. */
  readonly intermediate: number
  /** E: routed experts. */
  readonly experts: number
  /** @default 0 */
  readonly sharedExperts?: 0 | 1
  /** Whether the gate gets a correction bias. @default false */
  readonly correctionBias?: boolean
  /**
   * Family whose names the tensors get; Mixtral's knows neither shared experts nor correction biases. @default 'mlp'
   */
  readonly naming?: TensorNaming
  /** Number of the layer in the tensors' names. @default 0 */
  readonly layer?: number
  /** Any safe integer; the same seed gives the same file. */
  readonly seed: number
  /** How expert projections are stored; fp8 is e4m3 with block scales. The gate is bf16 then. */
  readonly dtype: WeightsDType
}

/** What weights to make, and where. */
export interface MakeWeightsOptions extends MadeWeights {
  /** The file to write. */
  readonly path: string
  /** Further text for the file, such as the model's name and top-k. */
  readonly metadata?: Readonly<Record<string, string>>
  readonly signal?: AbortSignal
  /** Hears the bytes written so far. */
  readonly onProgress?: OnProgress
}

/**
 * Writes a safetensors file with one MoE layer's made-up weights under the names of its family. Values are roughly
 * normal with deviation 1/sqrt(inputs of the projection), so that inputs of size 1 give outputs of size 1; correction
 * biases have deviation 0.05. The file's metadata carry all numbers as text. Memory stays at a few MiB whatever the
 * sizes.
 *
 * @throws ERR_MOE_EP_ARGUMENT for bad sizes or seed, ERR_MOE_EP_OUT_OF_MEMORY when the disk has no room for the file
 * (nothing was written then), else as {@link writeSafetensors}.
 */
export async function makeWeights(options: MakeWeightsOptions): Promise<void> {
  const { path, metadata, signal, onProgress } = options
  const tensors = sourcesOf(options)
  await requireDiskSpace(path, byteLengthOf(tensors))
  const { hidden, intermediate, experts, sharedExperts = 0, seed } = options
  const numbers = { hidden, intermediate, experts, sharedExperts, seed }
  await writeSafetensors({
    ...{ path, tensors },
    metadata: { ...metadata, ...Object.fromEntries(Object.entries(numbers).map(([key, value]) => [key, `${value}`])) },
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  })
}

/**
 * Bytes of all tensors of such a file.
 * @throws ERR_MOE_EP_ARGUMENT as {@link makeWeights}.
 */
export function madeWeightsBytes(weights: MadeWeights): number {
  return byteLengthOf(sourcesOf(weights))
}

function byteLengthOf(tensors: readonly TensorSource[]): number {
  return tensors.reduce((sum, tensor) => sum + (tensorByteLength(tensor) ?? Infinity), 0)
}

function sourcesOf(weights: MadeWeights): TensorSource[] {
  const { hidden, intermediate, experts, seed, dtype, ...rest } = weights
  const { sharedExperts = 0, correctionBias = false, naming = 'mlp', layer = 0 } = rest
  for (const [name, value] of Object.entries({ hidden, intermediate, experts })) {
    if (!Number.isSafeInteger(value) || value < 1) throw argumentError(name, 'a positive integer', value)
  }
  if (sharedExperts !== 0 && sharedExperts !== 1) throw argumentError('sharedExperts', '0 or 1', sharedExperts)
  if (!Number.isSafeInteger(layer) || layer < 0) throw argumentError('layer', 'an integer from 0', layer)
  if (!Number.isSafeInteger(seed)) throw argumentError('seed', 'an integer', seed)
  if (!weightsDTypes.includes(dtype)) throw argumentError('dtype', weightsDTypes.join(', '), dtype)
  if (naming !== 'mlp' && naming !== 'block_sparse_moe')
    throw argumentError('naming', "'mlp' or 'block_sparse_moe'", naming)
  if (naming === 'block_sparse_moe' && (sharedExperts === 1 || correctionBias)) {
    throw argumentError('naming', "'mlp' with a shared expert or a correction bias", naming)
  }
  const random = new RandomTensors(seed)
  const tensors = layerTensors({ hidden, intermediate, experts, sharedExperts, correctionBias, naming, layer, dtype })
  return tensors.flatMap((tensor) => random.sources(tensor))
}
