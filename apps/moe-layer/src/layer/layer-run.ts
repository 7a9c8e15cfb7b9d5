import { type Device, getDevice, type Stream, Tensor } from '@moe-ep/core'
import { type Experts, type ExpertWeights, GroupedExperts, onnxEngines } from '@moe-ep/experts'
import { IntranodeBuffer } from '@moe-ep/intranode-ht'
import { HtPrepareAndFinalize, ModularKernel } from '@moe-ep/modular-kernel'
import type { ProcessGroup } from '@moe-ep/transport'
import { makeActivations } from '../routing/activations.js'
import { gateLogits } from '../routing/gate-logits.js'
import { expertRangeOfRank } from '../routing/placement.js'
import { parseRouting } from '../routing/routing-kind.js'
import { createRouting } from '../routing/routing.js'
import type { Span } from '../results/rank-result.js'
import { loadMoeWeights, type MoeWeights } from '../weights/moe-weights.js'
import type { RunSpec } from './run-spec.js'
import { nowUs } from './stage-recorder.js'

/** What the gate chose for this rank's tokens. */
export interface Choice {
  readonly topkIdx: Int32Array
  readonly topkWeights: Float32Array
}

/** One rank's share of the layer, ready to run. */
export class LayerRun {
  readonly stream: Stream
  readonly x: Float32Array
  choice: Choice = { topkIdx: new Int32Array(0), topkWeights: new Float32Array(0) }
  readonly #spec: RunSpec
  readonly #group: ProcessGroup
  readonly #weights: MoeWeights
  readonly #hiddenStates: Tensor
  readonly #expertWeights: ExpertWeights
  readonly #buffer: IntranodeBuffer
  readonly #experts: Experts
  readonly #kernel: ModularKernel

  private constructor(spec: RunSpec, group: ProcessGroup, weights: MoeWeights, buffer: IntranodeBuffer, device: Device) {
    const { shape, options } = spec
    this.#spec = spec
    this.#group = group
    this.#weights = weights
    this.#buffer = buffer
    this.stream = device.createStream()
    const numTokens = options.tokens[group.rank]!
    this.x = makeActivations({ seed: options.seed, rank: group.rank, numTokens, hidden: shape.hidden })
    this.#hiddenStates = Tensor.from(this.x, [numTokens, shape.hidden], 'bf16', device)
    this.#expertWeights = stackExperts(weights, device)
    this.#experts = new GroupedExperts(onnxEngines())
    this.#kernel = new ModularKernel(new HtPrepareAndFinalize(buffer), this.#experts)
  }

  /** Reads this rank's experts and builds the buffers; collective. */
  static async create(spec: RunSpec, group: ProcessGroup): Promise<LayerRun> {
    const { shape, options } = spec
    const device = getDevice('cpu')
    const { begin, end } = expertRangeOfRank({ experts: shape.experts, ranks: group.worldSize, rank: group.rank })
    const experts = Array.from({ length: end - begin }, (_, i) => begin + i)
    const weights = await loadMoeWeights(spec.weights, { experts })
    const buffer = await IntranodeBuffer.create(group, {
      hidden: shape.hidden,
      maxTokensPerRank: Math.max(...options.tokens),
      maxTopk: shape.topk,
      maxExperts: shape.experts,
      timeoutMs: options.timeoutMs,
    })
    return new LayerRun(spec, group, weights, buffer, device)
  }

  /** One pass: gate, dispatch, experts, combine. Gives the output and the spans that no stream sees. */
  async pass(): Promise<{ output: Tensor; spans: Span[] }> {
    // All ranks begin together, so that one rank's lateness is not another one's waiting time.
    await this.#group.barrier()
    const beginUs = nowUs()
    this.choice = this.#gate()
    const gatedUs = nowUs()
    const { shape } = this.#spec
    const slots = [this.#hiddenStates.shape[0]!, shape.topk]
    const output = await this.#kernel.apply({
      hiddenStates: this.#hiddenStates,
      weights: this.#expertWeights,
      topkIdx: Tensor.wrap(this.choice.topkIdx, slots, 'i32'),
      topkWeights: Tensor.wrap(this.choice.topkWeights, slots, 'f32'),
      numExperts: shape.experts,
      stream: this.stream,
    })
    await this.stream.synchronize()
    const endUs = nowUs()
    const gateBytes = this.x.byteLength + this.#weights.gate.byteLength
    const spans: Span[] = [
      { stage: 'gate', beginUs, endUs: gatedUs, bytes: gateBytes },
      { stage: 'layer', beginUs, endUs, bytes: 0 },
    ]
    return { output, spans }
  }

  /** Rows that the last choice sends to each rank. */
  sentRows(): number[] {
    const { shape } = this.#spec
    const owners = Array.from({ length: this.#group.worldSize }, (_, rank) =>
      expertRangeOfRank({ experts: shape.experts, ranks: this.#group.worldSize, rank }),
    )
    const { topkIdx } = this.choice
    return owners.map(({ begin, end }) => {
      let rows = 0
      for (let token = 0; token < topkIdx.length; token += shape.topk) {
        const ids = topkIdx.subarray(token, token + shape.topk)
        if (ids.some((id) => id >= begin && id < end)) rows++
      }
      return rows
    })
  }

  async close(): Promise<void> {
    await this.#experts.close()
    await this.stream.close()
    this.#buffer.close()
  }

  #gate(): Choice {
    const { shape, options } = this.#spec
    const { worldSize, rank } = this.#group
    const kind = parseRouting(options.routing, { ranks: worldSize })
    const logits = gateLogits({ x: this.x, gate: this.#weights.gate, hidden: shape.hidden })
    const routing = createRouting({ kind, ranks: worldSize, experts: shape.experts, topk: shape.topk, rank })
    return routing.route(logits, options.tokens[rank]!)
  }
}

/** Weights of all local experts behind one another, as grouped experts read them. */
function stackExperts({ experts, hidden, intermediate }: MoeWeights, device: Device): ExpertWeights {
  const w13 = Tensor.zeros([experts.size, 2 * intermediate, hidden], 'f32', device)
  const w2 = Tensor.zeros([experts.size, hidden, intermediate], 'f32', device)
  let place = 0
  for (const weights of experts.values()) {
    const stack = (target: Tensor, values: Float32Array): void =>
      (target.slice(place, place + 1).data as Float32Array).set(values)
    stack(w13, weights.w13)
    stack(w2, weights.w2)
    place++
  }
  return { w13, w2 }
}
