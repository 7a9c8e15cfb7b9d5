import { type Stream, Tensor } from '@moe-ep/core'
import { type DispatchResult, type GroupedDispatchResult, IntranodeBuffer } from '@moe-ep/intranode-ht'
import { type GroupedSent, type SentTokens, scaleBytesOf } from '../measure/byte-rules.js'
import { setsOf } from '../measure/rotation.js'
import type { Scope } from '../measure/scope.js'
import { expertRowsOf } from '../workload/expert-rows.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import type { BenchContext } from './operation.js'

/** Keys of the inputs of a rank, so that receivers know what must arrive. */
export function inputKeys(
  seed: number,
  rank: number,
): { readonly x: number; readonly scales: number; readonly weights: number } {
  return {
    x: randomKey(seed, 'dispatch x', rank),
    scales: randomKey(seed, 'dispatch scales', rank),
    weights: randomKey(seed, 'dispatch weights', rank),
  }
}

/** What dispatch and combine are measured with on one rank. */
export class IntranodeBench {
  readonly buffer: IntranodeBuffer
  /** Slots that take turns; every slot has its own input rows. */
  readonly slots: number
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  readonly #context: BenchContext
  readonly #inputs: readonly { readonly x: Tensor; readonly scales: Tensor | undefined }[]

  private constructor(context: BenchContext, scope: Scope, kind: 'bf16' | 'fp8', buffer: IntranodeBuffer) {
    const { options, group, device, routing } = context
    const { tokens, topk, hidden, seed } = options
    const keys = inputKeys(seed, group.rank)
    this.#context = context
    this.buffer = buffer
    this.slots = buffer.sizes.maxInFlight
    this.topkIdx = Tensor.from(routing.topkIdx(group.rank), [tokens, topk], 'i32', device)
    this.topkWeights = scope.zeros([tokens, topk], 'f32')
    fillRandom(this.topkWeights, keys.weights, patterns.scale)
    this.#inputs = Array.from({ length: this.slots }, () => {
      const x = scope.zeros([tokens, hidden], kind === 'bf16' ? 'bf16' : 'fp8e4m3')
      fillRandom(x, keys.x, patterns[kind])
      if (kind === 'bf16') return { x, scales: undefined }
      const scales = scope.zeros([tokens, scaleBytesOf(hidden) / 4], 'f32')
      fillRandom(scales, keys.scales, patterns.scale)
      return { x, scales }
    })
  }

  /** Collective. */
  static async create(
    context: BenchContext,
    scope: Scope,
    { kind, grouped = false }: { readonly kind: 'bf16' | 'fp8'; readonly grouped?: boolean },
  ): Promise<IntranodeBench> {
    const { options, group, device, routing } = context
    const { tokens, topk, hidden, experts } = options
    const groupedRows = (): number => Math.max(...routing.matrix.map((_, rank) => expertRowsOf(routing, rank).capacity))
    const capacity = grouped ? groupedRows() : routing.mostReceived
    const maxElementBytes = kind === 'bf16' ? 2 : 1
    const buffer = await IntranodeBuffer.create(group, {
      ...{ hidden, maxTokensPerRank: tokens, capacity, maxElementBytes, maxTopk: topk, maxExperts: experts },
      ...{ maxInFlight: setsOf(device, capacity * hidden * maxElementBytes), device },
    })
    scope.own(buffer)
    const bench = new IntranodeBench(context, scope, kind, buffer)
    await awaitFills(device)
    return bench
  }

  /** Enqueues a dispatch into the slot of this iteration: with an exchange of counts, or by the plan of an earlier one. */
  dispatch(iteration: number, earlier?: DispatchResult): Promise<DispatchResult> {
    const { x, call } = this.#call(iteration)
    const plan = earlier?.handle.plan
    return this.buffer.dispatch(x, { ...(plan === undefined ? this.#routing : { plan }), ...call })
  }

  /** The same without a wait for counts on the host. */
  dispatchWorstCase(iteration: number): DispatchResult {
    const { x, call } = this.#call(iteration)
    return this.buffer.dispatchWorstCase(x, { ...this.#routing, ...call })
  }

  /** Straight into the layout of grouped GEMMs. */
  dispatchGrouped(iteration: number, earlier?: GroupedDispatchResult): Promise<GroupedDispatchResult> {
    const { x, call } = this.#call(iteration)
    const plan = earlier?.handle.plan
    return this.buffer.dispatchGrouped(x, { ...this.#routing, ...(plan && { plan }), ...call })
  }

  /** A dispatch that has completed and holds no slot any more. */
  async dispatchOnce(): Promise<DispatchResult> {
    const result = await this.dispatch(0)
    await result.event.synchronize()
    result.handle.lease.release()
    return result
  }

  async dispatchGroupedOnce(): Promise<GroupedDispatchResult> {
    const result = await this.dispatchGrouped(0)
    await result.event.synchronize()
    result.handle.lease.release()
    return result
  }

  /** What this rank sends. */
  get sent(): SentTokens {
    const { group, options, routing } = this.#context
    // Every token has experts, so every token goes somewhere.
    return { rank: group.rank, toRank: routing.matrix[group.rank]!, sentTokens: options.tokens }
  }

  /** What it sends in grouped calls. */
  get sentGrouped(): GroupedSent {
    const { group, routing } = this.#context
    return {
      selections: { ...this.sent, toRank: routing.selections[group.rank]! },
      crossing: { ...this.sent, toRank: this.crossingRows[group.rank]! },
    }
  }

  /** `[i][j]`: rows that cross from rank i to rank j in a grouped dispatch. Without links between them a row is written where it ends. */
  get crossingRows(): readonly (readonly number[])[] {
    const { device, routing } = this.#context
    return device.kind === 'cuda' ? routing.matrix : routing.selections
  }

  get #routing(): { readonly topkIdx: Tensor; readonly topkWeights: Tensor; readonly numExperts: number } {
    return { topkIdx: this.topkIdx, topkWeights: this.topkWeights, numExperts: this.#context.options.experts }
  }

  /** Where a call runs, and with how much of the device. */
  get launch(): { readonly stream: Stream; readonly numSms?: number } {
    const { stopwatch, options } = this.#context
    return { stream: stopwatch.stream, ...(options.sms !== undefined && { numSms: options.sms }) }
  }

  #call(iteration: number): {
    readonly x: Tensor
    readonly call: IntranodeBench['launch'] & { readonly scales?: Tensor; readonly slot: number }
  } {
    const slot = iteration % this.slots
    const { x, scales } = this.#inputs[slot]!
    return { x, call: { ...(scales && { scales }), slot, ...this.launch } }
  }
}
