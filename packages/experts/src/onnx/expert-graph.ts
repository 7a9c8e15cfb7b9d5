import type { ExpertSizes } from '../expert-sizes.js'
import type { OnnxGraph } from './model.js'

/**
 * The graph of one expert: `y = (silu(x . gate^T) * (x . up^T)) . w2^T`, all f32.
 *
 * Inputs: `x` [m, K] with m known only when it runs, `w13` [2I, K] (gate rows first, then up rows), `w2` [K, I].
 * Output: `y` [m, K]. Weights are inputs, so one small model serves every expert of these sizes.
 */
export function expertGraph({ hidden, intermediate }: ExpertSizes): OnnxGraph {
  return {
    name: 'expert',
    inputs: [
      { name: 'x', shape: ['m', hidden] },
      { name: 'w13', shape: [2 * intermediate, hidden] },
      { name: 'w2', shape: [hidden, intermediate] },
    ],
    outputs: [{ name: 'y', shape: ['m', hidden] }],
    nodes: [
      { operator: 'Gemm', inputs: ['x', 'w13'], outputs: ['gateUp'], attributes: { transB: 1 } },
      { operator: 'Split', inputs: ['gateUp'], outputs: ['gate', 'up'], attributes: { axis: 1 } },
      { operator: 'Sigmoid', inputs: ['gate'], outputs: ['sigmoid'] },
      { operator: 'Mul', inputs: ['gate', 'sigmoid'], outputs: ['silu'] },
      { operator: 'Mul', inputs: ['silu', 'up'], outputs: ['activated'] },
      { operator: 'Gemm', inputs: ['activated', 'w2'], outputs: ['y'], attributes: { transB: 1 } },
    ],
  }
}
