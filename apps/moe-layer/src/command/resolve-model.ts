import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join, resolve } from 'node:path'
import { MoeEpError } from '@moe-ep/core'
import { makeWeights } from '../weights/make-weights.js'
import { openMoeWeights } from '../weights/moe-weights.js'
import { configError, type LayerOptions } from './layer-options.js'
import { type ModelShape, presets } from './presets.js'
import { progressBar } from './progress-bar.js'

/** The sizes that a run has, and the file that holds its weights. */
export interface ResolvedModel {
  readonly shape: ModelShape
  readonly weights: string
}

/** Finds or makes the weights. Made ones are kept in the user's cache folder, by their sizes and seed. */
export async function resolveModel(options: LayerOptions): Promise<ResolvedModel> {
  const preset = presets[options.model]
  if (preset === undefined) return fromFile(resolve(options.model), options)
  const shape = requireTopk({ ...preset, ...options.shape })
  const { hidden, intermediate, experts, topk } = shape
  const name = `${options.model}-h${hidden}-i${intermediate}-e${experts}-s${options.seed}.safetensors`
  const weights = join(cacheFolder(), name)
  if (!existsSync(weights)) {
    await mkdir(cacheFolder(), { recursive: true })
    const onProgress = progressBar('making weights', options.json)
    const metadata = { model: options.model, topk: String(topk) }
    await makeWeights({ path: weights, hidden, intermediate, experts, seed: options.seed, dtype: 'bf16', metadata, onProgress })
  }
  return { shape, weights }
}

async function fromFile(path: string, { shape }: LayerOptions): Promise<ResolvedModel> {
  if (!existsSync(path)) throw configError('model', 'an existing file', path)
  const file = await openMoeWeights(path)
  try {
    const { hidden, intermediate, numExperts, metadata } = file
    const found = { hidden, intermediate, experts: numExperts, topk: Number(metadata['topk'] ?? NaN) }
    for (const size of ['hidden', 'intermediate', 'experts'] as const) {
      if (shape[size] !== undefined && shape[size] !== found[size]) throw configError(size, `${found[size]}, as in ${path}`, `${shape[size]}`)
    }
    return { shape: requireTopk({ ...found, ...shape }), weights: path }
  } finally {
    await file.close()
  }
}

function requireTopk(shape: ModelShape): ModelShape {
  const { topk, experts } = shape
  if (Number.isInteger(topk) && topk >= 1 && topk <= Math.min(experts, 32)) return shape
  throw configError('topk', `1 to ${Math.min(experts, 32)}`, Number.isNaN(topk) ? 'none: the file does not say' : String(topk))
}

/** Where made weights are kept: MOE_EP_CACHE, else the platform's cache folder. */
function cacheFolder(): string {
  const root = process.env['MOE_EP_CACHE'] ?? join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'moe-ep')
  if (root === '') throw new MoeEpError('ERR_MOE_EP_CONFIG', 'MOE_EP_CACHE: expected a folder, received nothing')
  return join(root, 'weights')
}
