import { getDevice, type Stream, Tensor } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'
import { makeActivations } from '../routing/activations.js'
import { gateLogits } from '../routing/gate-logits.js'
import { expertRangeOfRank } from '../routing/placement.js'
import { parseRouting } from '../routing/routing-kind.js'
import { createRouting } from '../routing/routing.js'
import type { Span } from '../results/rank-result.js'
import { createFamily, type Family } from './family.js'
import { graphPass } from './graph-pass.js'
import { kernelPass, type LayerPass } from './layer-pass.js'
import { loadRankWeights, type RankWeights } from './rank-weights.js'
import type { RunSpec } from './run-spec.js'
import { SharedExpert } from './shared-expert.js'
import { nowUs, type StageRecorder } from './stage-recorder.js'
import { toHost } from './through-host.js'

/** What the gate chose for this rank's tokens. */
export interface Choice {
  readonly topkIdx: Int32Array
  readonly topkWeights: Float32Array
}

/** What a run is put together from. */
interface LayerRunParts {
  readonly spec: RunSpec
  readonly group: ProcessGroup
  readonly x: Float32Array
  readonly weights: RankWeights
  readonly sharedExpert: SharedExpert | undefined
  readonly family: Family
  readonly recorder: StageRecorder
}

/** One rank's share of the layer, ready to run. */
export class LayerRun {
  readonly stream: Stream
  readonly x: Float32Array
  choice: Choice = { topkIdx: new Int32Array(0), topkWeights: new Float32Array(0) }
  readonly #spec: RunSpec
  readonly #group: ProcessGroup
  readonly #weights: RankWeights
  readonly #sharedExpert: SharedExpert | undefined
  readonly #hiddenStates: Tensor
  readonly #family: Family
  readonly #layer: LayerPass

  private constructor({ spec, group, x, weights, sharedExpert, family, recorder }: LayerRunParts) {
    const { device } = family
    this.#spec = spec
    this.#group = group
    this.#weights = weights
    this.#sharedExpert = sharedExpert
    this.#family = family
    this.stream = device.createStream()
    this.x = x
    this.#hiddenStates = Tensor.from(x, [spec.options.tokens[group.rank]!, spec.shape.hidden], 'bf16', device)
    const parts = {
      family,
      weights: weights.experts,
      numExperts: spec.shape.experts,
      stream: this.stream,
      meet: () => group.barrier(),
    }
    const { graph, overlap } = spec.options
    this.#layer = graph ? graphPass(parts, recorder) : kernelPass(parts, overlap)
  }

  /** Reads this rank's experts and builds the buffers; collective. */
  static async create(spec: RunSpec, group: ProcessGroup, recorder: StageRecorder): Promise<LayerRun> {
    const { shape, options, layer, weights: path } = spec
    const { rank, worldSize } = group
    const range = expertRangeOfRank({ experts: shape.experts, ranks: worldSize, rank })
    const weights = await loadRankWeights({ path, layer, range, device: getDevice('cpu') })
    const x = makeActivations({ seed: options.seed, rank, numTokens: options.tokens[rank]!, hidden: shape.hidden })
    const shared = weights.sharedExpert
    const sharedExpert = shared === undefined ? undefined : await SharedExpert.create(shared, x, shape.hidden)
    const family = await createFamily(spec, group)
    return new LayerRun({ spec, group, x, weights, sharedExpert, family, recorder })
  }

  /** One pass: gate, dispatch, experts, combine. Gives the output, on the host, and the spans that no stream sees. */
  async pass(): Promise<{ output: Tensor; spans: Span[] }> {
    // All ranks begin together, so that one rank's lateness is not another one's waiting time.
    await this.#group.barrier()
    const beginUs = nowUs()
    this.choice = this.#gate()
    const gatedUs = nowUs()
    const { shape } = this.#spec
    const slots = [this.#hiddenStates.shape[0]!, shape.topk]
    const { device } = this.#family
    const result = await this.#layer.run({
      hiddenStates: this.#hiddenStates,
      topkIdx: Tensor.copyOf(this.choice.topkIdx, slots, 'i32', device),
      topkWeights: Tensor.copyOf(this.choice.topkWeights, slots, 'f32', device),
    })
    await this.stream.synchronize()
    const combinedUs = nowUs()
    const output = device.kind === 'cpu' ? result : await toHost(result, this.stream)
    await this.#sharedExpert?.addTo(output)
    const endUs = nowUs()
    const gateBytes = this.x.byteLength + this.#weights.gate.byteLength
    const shared = this.#sharedExpert
    const spans: Span[] = [
      { stage: 'gate', beginUs, endUs: gatedUs, bytes: gateBytes },
      ...(shared === undefined ? [] : [{ stage: 'shared', beginUs: combinedUs, endUs, bytes: shared.bytes }]),
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
        const here = ids.filter((id) => id >= begin && id < end).length
        rows += this.#spec.options.protocol === 'expert' ? here : Math.min(here, 1)
      }
      return rows
    })
  }

  async close(): Promise<void> {
    this.#layer.close()
    await this.#family.experts.close()
    await this.#sharedExpert?.close()
    await this.stream.close()
    await this.#family.close()
  }

  #gate(): Choice {
    const { shape, options, gate } = this.#spec
    const { correctionBias } = this.#weights
    const { worldSize, rank } = this.#group
    const kind = parseRouting(options.routing, { ranks: worldSize })
    const logits = gateLogits({ x: this.x, gate: this.#weights.gate, hidden: shape.hidden })
    const routing = createRouting({
      ...{ kind, ranks: worldSize, experts: shape.experts, topk: shape.topk, rank },
      ...(gate !== undefined && { gate }),
      ...(correctionBias !== undefined && { correctionBias }),
    })
    return routing.route(logits, options.tokens[rank]!)
  }
}
