import { bf16ToF32Array, f32ToBf16Array, type Tensor } from '@moe-ep/core'
import { type ExpertEngine, onnxEngines } from '@moe-ep/experts'
import type { ExpertWeights } from '../weights/moe-weights.js'

/** The expert that every token passes, computed where the token lives. */
export class SharedExpert {
  readonly #engine: ExpertEngine
  readonly #weights: ExpertWeights
  readonly #x: Float32Array

  private constructor(engine: ExpertEngine, weights: ExpertWeights, x: Float32Array) {
    this.#engine = engine
    this.#weights = weights
    this.#x = x
  }

  /** @param x rows [T, K] of this rank */
  static async create(weights: ExpertWeights, x: Float32Array, hidden: number): Promise<SharedExpert> {
    const engine = await onnxEngines()({ hidden, intermediate: weights.w2.length / hidden })
    return new SharedExpert(engine, weights, x)
  }

  /** Bytes that one {@link addTo} reads and writes. */
  get bytes(): number {
    return this.#weights.w13.byteLength + this.#weights.w2.byteLength + this.#x.byteLength * 2
  }

  /** Adds the expert's rows, unweighted, to the routed bf16 output [T, K]; the sum is rounded once more. */
  async addTo(output: Tensor): Promise<void> {
    const rows = await this.#engine.run(this.#x, this.#weights.w13, this.#weights.w2)
    const routed = output.data as Uint16Array
    const sum = bf16ToF32Array(routed)
    for (let i = 0; i < sum.length; i++) sum[i]! += rows[i]!
    routed.set(f32ToBf16Array(sum))
  }

  close(): Promise<void> {
    return this.#engine.close()
  }
}
