import { existsSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Gate, maxTopk, softmaxGate } from '../gates/gate.js'
import { bufferBytes } from '../layer/buffer-sizes.js'
import type { ModelPreset, ModelShape } from '../presets/model-preset.js'
import { modelPresets } from '../presets/presets.js'
import { availableMemory } from '../weights/available-memory.js'
import { diskSpaceFor } from '../weights/disk-space.js'
import { type MadeWeights, madeWeightsBytes, makeWeights } from '../weights/make-weights.js'
import { memoryNeed, requireMemory } from '../weights/memory-need.js'
import { type MoeWeightsFile, openMoeWeights } from '../weights/moe-weights.js'
import { configError, type LayerOptions, type LayerDType } from './layer-options.js'
import { progressBar } from './progress-bar.js'
import { weightsCache } from './weights-cache.js'

/** What a run is made of: sizes, gate, and the file and layer that hold its weights. */
export interface ResolvedModel {
  readonly shape: ModelShape
  readonly gate: Gate
  readonly layer: number
  readonly weights: string
}

/**
 * Finds or makes the weights. Made ones are kept in the user's cache folder, by model, sizes and seed.
 * @throws ERR_MOE_EP_OUT_OF_MEMORY, before anything is made, when the run would not fit into memory or the file not on
 * the disk.
 */
export async function resolveModel(options: LayerOptions): Promise<ResolvedModel> {
  const preset = modelPresets.get(options.model)
  return preset === undefined ? fromFile(resolve(options.model), options) : fromPreset(preset, options)
}

async function fromPreset(preset: ModelPreset, options: LayerOptions): Promise<ResolvedModel> {
  const { gate, sharedExperts, correctionBias, naming, weightsDType } = preset
  const { seed, json, layer = preset.firstMoeLayer } = options
  const shape = requireRunnable({ ...preset.shape, ...options.shape }, gate, options.dtype)
  const { hidden, intermediate, experts, topk } = shape
  const made: MadeWeights = {
    ...{ hidden, intermediate, experts, sharedExperts, correctionBias, naming, layer, seed, dtype: weightsDType },
  }
  const place = layer === preset.firstMoeLayer ? '' : `-l${layer}`
  const weights = join(
    await weightsCache(),
    `${preset.name}-h${hidden}-i${intermediate}-e${experts}${place}-s${seed}.safetensors`,
  )
  const isMissing = !existsSync(weights)
  const fileBytes = isMissing && (await diskSpaceFor(weights))?.isMemory === true ? madeWeightsBytes(made) : 0
  await requireRoom(options, shape, { sharedIntermediate: sharedExperts * intermediate, fileBytes })
  if (isMissing) {
    const metadata = { model: preset.name, topk: String(topk) }
    await makeWeights({ path: weights, ...made, metadata, onProgress: progressBar('making weights', json) })
  }
  return { shape, gate, layer, weights }
}

async function fromFile(path: string, options: LayerOptions): Promise<ResolvedModel> {
  if (!existsSync(path)) throw configError('model', 'an existing file', path)
  const file = await openMoeWeights(path, { layer: options.layer })
  try {
    const { hidden, intermediate, numExperts, metadata, layer } = file
    const preset = modelPresets.get(options.preset ?? metadata['model'] ?? '')
    const gate = gateFor(file, preset, path)
    const topk = metadata['topk'] === undefined ? (preset?.shape.topk ?? NaN) : Number(metadata['topk'])
    const found = { hidden, intermediate, experts: numExperts, topk }
    for (const size of ['hidden', 'intermediate', 'experts'] as const) {
      const asked = options.shape[size]
      if (asked !== undefined && asked !== found[size])
        throw configError(size, `${found[size]}, as in ${path}`, `${asked}`)
    }
    const shape = requireRunnable({ ...found, ...options.shape }, gate, options.dtype)
    await requireRoom(options, shape, { sharedIntermediate: file.sharedIntermediate, fileBytes: 0 })
    return { shape, gate, layer, weights: path }
  } finally {
    await file.close()
  }
}

/**
 * A file does not say how its gate scores; the model does. Without one, only the plain softmax gate is safe to assume.
 */
function gateFor(file: MoeWeightsFile, preset: ModelPreset | undefined, path: string): Gate {
  const { hasCorrectionBias, hasSharedExpert } = file
  if (preset === undefined) {
    if (!hasCorrectionBias && !hasSharedExpert) return softmaxGate
    throw configError(
      'preset',
      `the model that ${path} belongs to, for it has a correction bias or a shared expert`,
      'none',
    )
  }
  const differences = [
    ...(hasCorrectionBias === preset.correctionBias ? [] : ['correction bias']),
    ...(hasSharedExpert === (preset.sharedExperts === 1) ? [] : ['shared expert']),
  ]
  if (differences.length === 0) return preset.gate
  throw configError('preset', `a model with the same ${differences.join(' and ')} as ${path}`, preset.name)
}

async function requireRoom(
  options: LayerOptions,
  shape: ModelShape,
  more: { readonly sharedIntermediate: number; readonly fileBytes: number },
): Promise<void> {
  const { model, tokens } = options
  const bufferBytesPerRank = bufferBytes(shape, options)
  requireMemory(model, memoryNeed({ shape, tokens, bufferBytesPerRank, ...more }), await availableMemory())
}

function requireRunnable(shape: ModelShape, gate: Gate, dtype: LayerDType): ModelShape {
  const { hidden, topk, experts } = shape
  const multiple = dtype === 'fp8' ? 16 : 8
  if (hidden % multiple !== 0)
    throw configError(
      'hidden',
      `a multiple of ${multiple}, for ${dtype} rows travel in pieces of 16 bytes`,
      String(hidden),
    )
  const most = Math.min(maxTopk(gate, experts), 32)
  if (Number.isInteger(topk) && topk >= 1 && topk <= most) return shape
  throw configError('topk', `1 to ${most}`, Number.isNaN(topk) ? 'none: the file does not say' : String(topk))
}
