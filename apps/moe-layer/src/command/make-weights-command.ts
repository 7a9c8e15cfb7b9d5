import { parseArgs } from 'node:util'
import { makeWeights } from '../weights/make-weights.js'
import { configError, integer, shapeFrom } from './layer-options.js'
import { presets } from './presets.js'
import { progressBar } from './progress-bar.js'

/** `moe-layer make-weights`: writes a safetensors file of random weights. */
export async function makeWeightsCommand(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      out: { type: 'string' },
      hidden: { type: 'string' },
      intermediate: { type: 'string' },
      experts: { type: 'string' },
      topk: { type: 'string' },
      dtype: { type: 'string', default: 'bf16' },
      seed: { type: 'string', default: '1' },
    },
  })
  const { out, dtype } = values
  if (out === undefined || !out.endsWith('.safetensors')) throw configError('out', 'a path that ends with .safetensors', String(out))
  if (dtype !== 'bf16' && dtype !== 'f32') throw configError('dtype', 'bf16 or f32', dtype)
  const { topk, ...sizes } = { ...presets['demo']!, ...shapeFrom(values) }
  const seed = integer('seed', values.seed, 0, 2 ** 31 - 1)
  const metadata = { model: 'demo', topk: String(topk) }
  await makeWeights({ path: out, ...sizes, seed, dtype, metadata, onProgress: progressBar('making weights', false) })
}
