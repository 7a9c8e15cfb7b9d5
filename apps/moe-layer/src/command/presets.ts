/** Sizes of a MoE layer. */
export interface ModelShape {
  readonly hidden: number
  readonly intermediate: number
  readonly experts: number
  readonly topk: number
}

/** Models that the app makes weights for itself: softmax gate with renormalised weights, SwiGLU experts, no shared expert. */
export const presets: Readonly<Record<string, ModelShape>> = {
  demo: { hidden: 1024, intermediate: 512, experts: 32, topk: 4 },
}
