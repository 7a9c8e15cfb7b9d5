import { type DType, type Event, Tensor } from '@moe-ep/core'
import { LowLatencyBuffer, type LowLatencyDispatchResult, type PackedRows } from '@moe-ep/low-latency'
import { scaleBytesOf, type SentTokens } from '../measure/byte-rules.js'
import type { Scope } from '../measure/scope.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns } from '../workload/random-words.js'
import { inputKeys } from './intranode.js'
import type { BenchContext } from './operation.js'

/** Slots that take turns. */
export const slots = 2

/** What is sent how. */
export interface LowLatencyKind {
  readonly format: 'bf16' | 'fp8'
  /** Weights go with the dispatch. */
  readonly weighted: boolean
}

/** What the low-latency operations are measured with on one rank. */
export class LowLatencyBench {
  readonly buffer: LowLatencyBuffer
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  readonly #context: BenchContext
  readonly #x: readonly Tensor[]
  readonly #out: readonly Partial<PackedRows>[]
  readonly #format: 'bf16' | 'fp8'
  readonly #weighted: boolean

  private constructor(context: BenchContext, scope: Scope, buffer: LowLatencyBuffer, kind: LowLatencyKind) {
    const { options, group, device, routing } = context
    const { tokens, topk, hidden, seed } = options
    const keys = inputKeys(seed, group.rank)
    const { begin, end } = routing.placement.rangeOf(group.rank)
    this.#context = context
    this.buffer = buffer
    this.#format = kind.format
    this.#weighted = kind.weighted
    this.topkIdx = Tensor.from(routing.topkIdx(group.rank), [tokens, topk], 'i32', device)
    this.topkWeights = scope.zeros([tokens, topk], 'f32')
    fillRandom(this.topkWeights, keys.weights, patterns.scale)
    this.#x = Array.from({ length: slots }, () => {
      const x = scope.zeros([tokens, hidden], 'bf16')
      fillRandom(x, keys.x, patterns.bf16)
      return x
    })
    const [experts, rows] = [end - begin, group.worldSize * tokens]
    // Not zeroed: of its rows few are used.
    const room = (shape: readonly number[], dtype: DType): Tensor => {
      const tensor = Tensor.empty(shape, dtype, device)
      scope.own(tensor.memory)
      return tensor
    }
    const columns = scaleBytesOf(hidden) / 4
    const scales = (): Tensor => {
      const { memory } = room([experts, columns, rows], 'f32')
      const strides = [columns * rows, 1, rows]
      return new Tensor({ memory, dtype: 'f32', shape: [experts, rows, columns], strides })
    }
    this.#out = Array.from({ length: slots }, () =>
      kind.format === 'bf16'
        ? { packedRecvX: room([experts, rows, hidden], 'bf16') }
        : { packedRecvX: room([experts, rows, hidden], 'fp8e4m3'), packedRecvXScales: scales() },
    )
  }

  /** Collective. */
  static async create(context: BenchContext, scope: Scope, kind: LowLatencyKind): Promise<LowLatencyBench> {
    const { options, group, device } = context
    const { tokens, topk, hidden } = options
    const buffer = await LowLatencyBuffer.create(group, {
      ...{ hidden, maxTokensPerRank: tokens, maxTopk: topk, maxInFlight: slots, device },
      ...{ protocol: options.protocol, ...(options.sms !== undefined && { numSms: options.sms }) },
    })
    scope.own(buffer)
    const bench = new LowLatencyBench(context, scope, buffer, kind)
    await awaitFills(device)
    return bench
  }

  /** Both phases, or with `hooked` the send phase. */
  dispatch(iteration: number, hooked = false): LowLatencyDispatchResult {
    const slot = iteration % slots
    return this.buffer.lowLatencyDispatch(this.#x[slot]!, this.topkIdx, {
      ...{ numExperts: this.#context.options.experts, useFp8: this.#format === 'fp8', slot },
      ...{ out: this.#out[slot]!, stream: this.#context.stopwatch.stream },
      ...{ returnRecvHook: hooked, ...(this.#weighted && { topkWeights: this.topkWeights }) },
    })
  }

  /** Both phases, or with `hooked` the send phase; the receive phase is then what comes back. */
  combine(x: Tensor, { handle }: LowLatencyDispatchResult, out: Tensor, hooked = false): (() => Event) | undefined {
    const weights = this.#weighted ? undefined : this.topkWeights
    const { stream } = this.#context.stopwatch
    return this.buffer.lowLatencyCombine(x, this.topkIdx, weights, handle, { out, stream, returnRecvHook: hooked }).hook
  }

  /** bf16 of the received rows' shape, ones in all of them: what experts might answer. */
  ones(scope: Scope): Tensor {
    const { options, group, device, routing } = this.#context
    const { begin, end } = routing.placement.rangeOf(group.rank)
    const ones = Tensor.empty([end - begin, group.worldSize * options.tokens, options.hidden], 'bf16', device)
    scope.own(ones.memory)
    fillRandom(ones, 0, patterns.one)
    return ones
  }

  /** `[i][j]`: rows that rank i sends to rank j. */
  get sentRows(): readonly (readonly number[])[] {
    const { options, routing } = this.#context
    return options.protocol === 'rank' ? routing.matrix : routing.selections
  }

  get sent(): SentTokens {
    const { group, options } = this.#context
    return { rank: group.rank, toRank: this.sentRows[group.rank]!, sentTokens: options.tokens }
  }
}
