import type { Gate } from '../gates/gate.js'
import type { TensorNaming } from '../weights/moe-tensor-names.js'

/** Sizes of a MoE layer. */
export interface ModelShape {
  readonly hidden: number
  readonly intermediate: number
  readonly experts: number
  readonly topk: number
}

/** How the elements of a weights file may be stored: fp8 means e4m3 with a scale for each block of 128 x 128. */
export const weightsDTypes = ['bf16', 'f32', 'fp8'] as const

/** One of {@link weightsDTypes}. */
export type WeightsDType = (typeof weightsDTypes)[number]

/** What makes a MoE layer the layer of a certain model. Expert projections have no biases in any of them. */
export interface ModelPreset {
  readonly name: string
  readonly shape: ModelShape
  readonly gate: Gate
  /** Whether the gate adds a bias to the scores for its choice (e_score_correction_bias). */
  readonly correctionBias: boolean
  /** Between the two products of an expert: silu(gate rows) times up rows. */
  readonly activation: 'silu'
  /** Experts that every token passes, fused into one of `sharedExperts * intermediate`, added unweighted. */
  readonly sharedExperts: 0 | 1
  readonly naming: TensorNaming
  /** Index of the model's first MoE layer; those before it are dense. */
  readonly firstMoeLayer: number
  /** How its published weights are stored. */
  readonly weightsDType: WeightsDType
}
