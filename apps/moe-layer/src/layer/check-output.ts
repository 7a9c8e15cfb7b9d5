import { denseReference } from '../check/dense-reference.js'
import { createMatmul } from '../check/matmul.js'
import { maxRelError } from '../check/max-rel-error.js'
import { openMoeWeights } from '../weights/moe-weights.js'
import type { Choice } from './layer-run.js'
import type { RunSpec } from './run-spec.js'

/** Largest error of this rank's output against a dense computation of the same tokens, expert by expert. */
export async function checkOutput(
  spec: RunSpec,
  x: Float32Array,
  choice: Choice,
  output: Float32Array,
): Promise<number> {
  const { hidden, topk } = spec.shape
  const file = await openMoeWeights(spec.weights, { layer: spec.layer })
  // All ranks check at the same time: one thread each.
  const matmul = await createMatmul({ threads: 1 })
  try {
    const loadExpert = (expert: number): ReturnType<typeof file.readExpert> => file.readExpert(expert)
    const sharedExpert = await file.readSharedExpert()
    const shared = sharedExpert === undefined ? {} : { sharedExpert }
    return maxRelError(output, await denseReference({ x, hidden, topk, ...choice, loadExpert, ...shared, matmul }))
  } finally {
    await matmul.close()
    await file.close()
  }
}
