/**
 * How a family of models names a layer's tensors: `mlp` as Qwen3, DeepSeek-V3 and GLM-4.5 do, `block_sparse_moe` as
 * Mixtral.
 */
export type TensorNaming = 'mlp' | 'block_sparse_moe'

/** Names of one gated MLP's tensors: gate and up are [I, K], down is [K, I]. */
export interface MlpTensorNames {
  readonly gateProj: string
  readonly upProj: string
  readonly downProj: string
}

/** Names of one layer's tensors. */
export interface LayerTensorNames {
  /** The gate's weight [E, K]. */
  readonly gate: string
  /** The gate's correction bias [E], where the family has one. */
  readonly correctionBias: string | undefined
  readonly sharedExpert: MlpTensorNames | undefined
  expert(expert: number): MlpTensorNames
}

/** The names that the family of models gives to layer number `layer`. */
export function layerTensorNames(naming: TensorNaming, layer: number): LayerTensorNames {
  const prefix = `model.layers.${layer}.${naming}`
  const gate = `${prefix}.gate.weight`
  if (naming === 'block_sparse_moe') {
    const expert = (id: number): MlpTensorNames => mlpNames(`${prefix}.experts.${id}`, ['w1', 'w3', 'w2'])
    return { gate, correctionBias: undefined, sharedExpert: undefined, expert }
  }
  return {
    gate,
    correctionBias: `${prefix}.gate.e_score_correction_bias`,
    sharedExpert: mlpNames(`${prefix}.shared_experts`),
    expert: (id) => mlpNames(`${prefix}.experts.${id}`),
  }
}

/** The tensor with the block scales of an fp8 weight. In spite of its name it holds what elements are multiplied by. */
export function scaleName(weight: string): string {
  return `${weight}_scale_inv`
}

function mlpNames(prefix: string, [gate, up, down] = ['gate_proj', 'up_proj', 'down_proj']): MlpTensorNames {
  return {
    gateProj: `${prefix}.${gate}.weight`,
    upProj: `${prefix}.${up}.weight`,
    downProj: `${prefix}.${down}.weight`,
  }
}
