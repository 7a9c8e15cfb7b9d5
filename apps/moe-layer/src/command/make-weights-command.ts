import { parseArgs } from 'node:util'
import { type WeightsDType, weightsDTypes } from '../presets/model-preset.js'
import { makeWeights } from '../weights/make-weights.js'
import { helpText } from './help.js'
import { configError, integer, layerFrom, presetNamed, shapeFrom } from './layer-options.js'
import { progressBar } from './progress-bar.js'

/** `moe-layer make-weights`: writes a safetensors file of random weights for one layer of a preset. */
export async function makeWeightsCommand(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      out: { type: 'string' },
      preset: { type: 'string', default: 'demo' },
      layer: { type: 'string' },
      hidden: { type: 'string' },
      intermediate: { type: 'string' },
      experts: { type: 'string' },
      topk: { type: 'string' },
      dtype: { type: 'string' },
      seed: { type: 'string', default: '1' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) return console.log(helpText)
  const preset = presetNamed(values.preset)
  const { name: model, shape, sharedExperts, correctionBias, naming, firstMoeLayer, weightsDType } = preset
  const { out, dtype = weightsDType } = values
  if (out === undefined || !out.endsWith('.safetensors'))
    throw configError('out', 'a path that ends with .safetensors', String(out))
  if (!isWeightsDType(dtype)) throw configError('dtype', weightsDTypes.join(', '), dtype)
  const layer = values.layer === undefined ? firstMoeLayer : layerFrom(values.layer)
  const { topk, ...sizes } = { ...shape, ...shapeFrom(values) }
  await makeWeights({
    ...{ path: out, ...sizes, sharedExperts, correctionBias, naming, layer, dtype },
    seed: integer('seed', values.seed, 0, 2 ** 31 - 1),
    metadata: { model, topk: String(topk) },
    onProgress: progressBar('making weights', false),
  })
}

function isWeightsDType(text: string): text is WeightsDType {
  return (weightsDTypes as readonly string[]).includes(text)
}
