import { type Stream, Tensor } from '@moe-ep/core'
import type { ExpertWeights } from '@moe-ep/experts'
import { MicroBatches, ModularKernel } from '@moe-ep/modular-kernel'
import type { Family } from './family.js'

/** What the gate hands on: rows, and who is to compute on them. */
export interface LayerInputs {
  /** bf16 [T, hidden]. */
  readonly hiddenStates: Tensor
  /** i32 [T, topk]. */
  readonly topkIdx: Tensor
  /** f32 [T, topk]. */
  readonly topkWeights: Tensor
}

/** One way to run the layer from dispatch to combine, again and again. */
export interface LayerPass {
  /** The output [T, hidden], enqueued; valid until the next call. Collective. */
  run(inputs: LayerInputs): Promise<Tensor>
  close(): void
}

/** What every way needs. */
export interface LayerPassParts {
  readonly family: Family
  readonly weights: ExpertWeights
  /** Experts of all ranks together. */
  readonly numExperts: number
  readonly stream: Stream
  /** Resolves when all ranks have come to it. */
  readonly meet: () => Promise<void>
}

/** The layer by ordinary calls. With `overlap` tokens are cut into so many micro-batches, of which one computes while others travel. */
export function kernelPass({ family, weights, numExperts, stream }: LayerPassParts, overlap: number): LayerPass {
  const kernel = new ModularKernel(family.prepareAndFinalize, family.experts)
  const batches = new MicroBatches(overlap)
  const shared = { weights, numExperts, stream }
  return {
    async run(inputs) {
      const { shape, dtype, device } = inputs.hiddenStates
      const output = Tensor.empty(shape, dtype, device)
      if (overlap === 1) return kernel.apply({ ...inputs, ...shared, output })
      await batches.run(({ microBatch, pass }) => {
        const [begin, end] = [microBatch, microBatch + 1].map((part) => Math.floor((shape[0]! * part) / overlap))
        const partOf = (tensor: Tensor): Tensor => tensor.slice(begin!, end!)
        return kernel.apply({
          ...{ ...shared, microBatch, pass, output: partOf(output), hiddenStates: partOf(inputs.hiddenStates) },
          ...{ topkIdx: partOf(inputs.topkIdx), topkWeights: partOf(inputs.topkWeights) },
        })
      })
      return output
    },
    close() {},
  }
}
