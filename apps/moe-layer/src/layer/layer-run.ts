import { type Device, getCudaDeviceOfRank, getDevice, type Stream, Tensor } from '@moe-ep/core'
import { type Experts, GroupedExperts, onnxEngines } from '@moe-ep/experts'
import { IntranodeBuffer } from '@moe-ep/intranode-ht'
import { HtPrepareAndFinalize, ModularKernel } from '@moe-ep/modular-kernel'
import type { ProcessGroup } from '@moe-ep/transport'
import { makeActivations } from '../routing/activations.js'
import { gateLogits } from '../routing/gate-logits.js'
import { expertRangeOfRank } from '../routing/placement.js'
import { parseRouting } from '../routing/routing-kind.js'
import { createRouting } from '../routing/routing.js'
import type { Span } from '../results/rank-result.js'
import { bufferSizes } from './buffer-sizes.js'
import { loadRankWeights, type RankWeights } from './rank-weights.js'
import type { RunSpec } from './run-spec.js'
import { SharedExpert } from './shared-expert.js'
import { nowUs } from './stage-recorder.js'
import { ThroughHost, toHost } from './through-host.js'

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
  readonly buffer: IntranodeBuffer
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
  readonly #buffer: IntranodeBuffer
  readonly #experts: Experts
  readonly #kernel: ModularKernel

  private constructor({ spec, group, x, weights, sharedExpert, buffer }: LayerRunParts) {
    const { device } = buffer
    this.#spec = spec
    this.#group = group
    this.#weights = weights
    this.#sharedExpert = sharedExpert
    this.#buffer = buffer
    this.stream = device.createStream()
    this.x = x
    this.#hiddenStates = Tensor.from(x, [spec.options.tokens[group.rank]!, spec.shape.hidden], 'bf16', device)
    const experts = new GroupedExperts(onnxEngines())
    this.#experts = device.kind === 'cpu' ? experts : new ThroughHost(experts)
    const quantized = spec.options.dtype === 'fp8' ? { quant: { kind: 'fp8-block' } as const } : {}
    this.#kernel = new ModularKernel(new HtPrepareAndFinalize(buffer, quantized), this.#experts)
  }

  /** Reads this rank's experts and builds the buffers; collective. */
  static async create(spec: RunSpec, group: ProcessGroup): Promise<LayerRun> {
    const { shape, options, layer, weights: path } = spec
    const { rank, worldSize } = group
    const range = expertRangeOfRank({ experts: shape.experts, ranks: worldSize, rank })
    const weights = await loadRankWeights({ path, layer, range, device: getDevice('cpu') })
    const x = makeActivations({ seed: options.seed, rank, numTokens: options.tokens[rank]!, hidden: shape.hidden })
    const shared = weights.sharedExpert
    const sharedExpert = shared === undefined ? undefined : await SharedExpert.create(shared, x, shape.hidden)
    const sizes = bufferSizes(shape, options.tokens)
    const device = deviceOfRank(options, group)
    const buffer = await IntranodeBuffer.create(group, { ...sizes, device, timeoutMs: options.timeoutMs })
    return new LayerRun({ spec, group, x, weights, sharedExpert, buffer })
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
    const { device } = this.#buffer
    const result = await this.#kernel.apply({
      hiddenStates: this.#hiddenStates,
      weights: this.#weights.experts,
      topkIdx: Tensor.copyOf(this.choice.topkIdx, slots, 'i32', device),
      topkWeights: Tensor.copyOf(this.choice.topkWeights, slots, 'f32', device),
      numExperts: shape.experts,
      stream: this.stream,
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
        if (ids.some((id) => id >= begin && id < end)) rows++
      }
      return rows
    })
  }

  async close(): Promise<void> {
    await this.#experts.close()
    await this.#sharedExpert?.close()
    await this.stream.close()
    this.#buffer.close()
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

function deviceOfRank({ device, shareGpus }: RunSpec['options'], { rank, worldSize }: ProcessGroup): Device {
  if (device === 'cpu') return getDevice('cpu')
  return getCudaDeviceOfRank({ localRank: rank, localWorldSize: worldSize, shareGpus })
}
