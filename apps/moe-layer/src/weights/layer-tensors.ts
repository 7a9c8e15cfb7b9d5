import type { WeightsDType } from '../presets/model-preset.js'
import { layerTensorNames, type MlpTensorNames, type TensorNaming } from './moe-tensor-names.js'

/** Sizes and names of a layer's tensors. */
export interface LayerTensorsOptions {
  readonly hidden: number
  readonly intermediate: number
  readonly experts: number
  readonly sharedExperts: 0 | 1
  readonly correctionBias: boolean
  readonly naming: TensorNaming
  readonly layer: number
  readonly dtype: WeightsDType
}

/** One tensor of a layer that is to be made. */
export interface LayerTensor {
  readonly name: string
  readonly shape: readonly number[]
  /** Standard deviation of its values. */
  readonly deviation: number
  readonly dtype: WeightsDType
}

/** Deviation of made correction biases: enough to change choices, too little to rule them. */
const biasDeviation = 0.05

/**
 * All tensors of a layer in the order of their family's files. Only expert projections are ever fp8: the gate is bf16
 * then, and the correction bias is always f32, as in published files.
 */
export function layerTensors(options: LayerTensorsOptions): LayerTensor[] {
  const { hidden, intermediate, experts, sharedExperts, correctionBias, naming, layer, dtype } = options
  const names = layerTensorNames(naming, layer)
  const matrix = (name: string, rows: number, columns: number): LayerTensor => {
    // Inputs of size 1 shall give outputs of size 1.
    return { name, shape: [rows, columns], deviation: 1 / Math.sqrt(columns), dtype }
  }
  const mlp = ({ gateProj, upProj, downProj }: MlpTensorNames): LayerTensor[] => [
    matrix(gateProj, intermediate, hidden),
    matrix(upProj, intermediate, hidden),
    matrix(downProj, hidden, intermediate),
  ]
  const gate: LayerTensor = { ...matrix(names.gate, experts, hidden), dtype: dtype === 'fp8' ? 'bf16' : dtype }
  const bias: LayerTensor[] =
    correctionBias && names.correctionBias !== undefined
      ? [{ name: names.correctionBias, shape: [experts], deviation: biasDeviation, dtype: 'f32' }]
      : []
  return [
    gate,
    ...bias,
    ...Array.from({ length: experts }, (_, expert) => mlp(names.expert(expert))).flat(),
    ...(sharedExperts === 1 && names.sharedExpert !== undefined ? mlp(names.sharedExpert) : []),
  ]
}
