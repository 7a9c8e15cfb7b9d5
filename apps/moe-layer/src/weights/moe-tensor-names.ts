/** Names of one gated MLP's tensors: gate and up are [I, K], down is [K, I]. */
export interface MlpTensorNames {
  readonly gateProj: string
  readonly upProj: string
  readonly downProj: string
}

/** Name of the gate's weight [E, K] in this layer, as Qwen3-MoE and DeepSeek-V3 files have it. */
export function gateName(layer: number): string {
  return `model.layers.${layer}.mlp.gate.weight`
}

/** Names of one routed expert's tensors. */
export function expertNames(layer: number, expert: number): MlpTensorNames {
  return mlpNames(`model.layers.${layer}.mlp.experts.${expert}`)
}

/** Names of the shared expert's tensors. */
export function sharedExpertNames(layer: number): MlpTensorNames {
  return mlpNames(`model.layers.${layer}.mlp.shared_experts`)
}

function mlpNames(prefix: string): MlpTensorNames {
  return {
    gateProj: `${prefix}.gate_proj.weight`,
    upProj: `${prefix}.up_proj.weight`,
    downProj: `${prefix}.down_proj.weight`,
  }
}
