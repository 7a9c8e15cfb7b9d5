import type { ExpertSizes } from './expert-sizes.js'
import { OnnxExpertEngine } from './onnx/engine.js'
import { referenceExpert } from './reference-expert.js'

/** Computes one expert: GEMM, SiLU and multiply, GEMM, all f32. */
export interface ExpertEngine {
  /** Rows [m, K] for rows `x` [m, K], weights `w13` [2I, K] and `w2` [K, I]; into `out` where it is given. */
  run(
    x: Float32Array,
    w13: Float32Array,
    w2: Float32Array,
    options?: { readonly out?: Float32Array },
  ): Promise<Float32Array>
  close(): Promise<void>
}

/** Makes an engine when the sizes are known. */
export type ExpertEngineFactory = (sizes: ExpertSizes) => Promise<ExpertEngine>

/** Engines on onnxruntime-node, which must be installed. @param threads of one product, default 1 */
export function onnxEngines(options: { readonly threads?: number } = {}): ExpertEngineFactory {
  return (sizes) => OnnxExpertEngine.create({ ...sizes, ...options })
}

/** Engines in plain TypeScript: slow, needs nothing. */
export function referenceEngines(): ExpertEngineFactory {
  return async ({ hidden, intermediate }) => ({
    async run(x, w13, w2, { out } = {}) {
      const y = referenceExpert({ hidden, intermediate, x, w13, w2 })
      out?.set(y)
      return out ?? y
    },
    async close() {},
  })
}
