import { type DType, type Event, Tensor } from '@moe-ep/core'
import { LowLatencyBuffer, type LowLatencyDispatchResult, type PackedRows } from '@moe-ep/low-latency'
import { mxGroupSize, nvfp4GroupSize } from '@moe-ep/quant'
import { type LowLatencyFormat, scaleBytesOf, type SentTokens } from '../measure/byte-rules.js'
import type { Scope } from '../measure/scope.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns } from '../workload/random-words.js'
import { inputKeys } from './intranode.js'
import type { BenchContext } from './operation.js'

/** Slots that take turns. */
export const slots = 2

/** NVFP4's global scale for rows whose magnitudes are below 2. */
export const globalScale = (448 * 6) / 2

/** What is sent how. */
export interface LowLatencyKind {
  readonly format: Exclude<LowLatencyFormat, 'logfmt10'>
  /** Weights go with the dispatch. */
  readonly weighted: boolean
  /** Results come home as LogFMT-10. */
  readonly useLogfmt?: boolean
}

/** What the low-latency operations are measured with on one rank. */
export class LowLatencyBench {
  readonly buffer: LowLatencyBuffer
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  readonly #context: BenchContext
  readonly #x: readonly Tensor[]
  readonly #out: readonly Partial<PackedRows>[]
  readonly #kind: LowLatencyKind
  readonly #xGlobalScale: Tensor | undefined

  private constructor(context: BenchContext, scope: Scope, buffer: LowLatencyBuffer, kind: LowLatencyKind) {
    const { options, group, device, routing } = context
    const { tokens, topk, hidden, seed } = options
    const keys = inputKeys(seed, group.rank)
    this.#context = context
    this.buffer = buffer
    this.#kind = kind
    this.#xGlobalScale = kind.format === 'nvfp4' ? Tensor.from([globalScale], [1], 'f32', device) : undefined
    this.topkIdx = Tensor.from(routing.topkIdx(group.rank), [tokens, topk], 'i32', device)
    this.topkWeights = scope.zeros([tokens, topk], 'f32')
    fillRandom(this.topkWeights, keys.weights, patterns.scale)
    this.#x = Array.from({ length: slots }, () => {
      const x = scope.zeros([tokens, hidden], 'bf16')
      fillRandom(x, keys.x, patterns.bf16)
      return x
    })
    const [experts, rows] = [routing.placement.countOf(group.rank), group.worldSize * tokens]
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
    const shape = [experts, rows, hidden]
    const make = {
      bf16: () => ({ packedRecvX: room(shape, 'bf16') }),
      fp8: () => ({ packedRecvX: room(shape, 'fp8e4m3'), packedRecvXScales: scales() }),
      mxfp8: () => ({
        packedRecvX: room(shape, 'fp8e4m3'),
        packedRecvXScales: room([experts, rows, Math.ceil(hidden / mxGroupSize)], 'e8m0'),
      }),
      nvfp4: () => ({
        packedRecvX: room(shape, 'fp4e2m1'),
        packedRecvXScales: room([experts, rows, hidden / nvfp4GroupSize], 'fp8e4m3'),
      }),
    }
    this.#out = Array.from({ length: slots }, make[kind.format])
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
      ...{ numExperts: this.#context.options.experts, format: this.#kind.format, slot },
      ...(this.#xGlobalScale && { xGlobalScale: this.#xGlobalScale }),
      ...{ out: this.#out[slot]!, stream: this.#context.stopwatch.stream },
      ...{ returnRecvHook: hooked, ...(this.#kind.weighted && { topkWeights: this.topkWeights }) },
    })
  }

  /** Both phases, or with `hooked` the send phase; the receive phase is then what comes back. */
  combine(x: Tensor, { handle }: LowLatencyDispatchResult, out: Tensor, hooked = false): (() => Event) | undefined {
    const { weighted, useLogfmt = false } = this.#kind
    const weights = weighted ? undefined : this.topkWeights
    const { stream } = this.#context.stopwatch
    return this.buffer.lowLatencyCombine(x, this.topkIdx, weights, handle, {
      ...{ out, stream, useLogfmt, returnRecvHook: hooked },
    }).hook
  }

  /** bf16 of the received rows' shape, ones in all of them: what experts might answer. */
  ones(scope: Scope): Tensor {
    const { options, group, device, routing } = this.#context
    const experts = routing.placement.countOf(group.rank)
    const ones = Tensor.empty([experts, group.worldSize * options.tokens, options.hidden], 'bf16', device)
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
