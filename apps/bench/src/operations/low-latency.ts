import { bf16ToF32Array, type DType, encode, Tensor } from '@moe-ep/core'
import { LowLatencyBuffer, type LowLatencyDispatchResult, type PackedRows } from '@moe-ep/low-latency'
import { reference } from '@moe-ep/quant'
import {
  lowLatencyCombineBytes,
  lowLatencyDispatchBytes,
  rules,
  scaleBytesOf,
  type SentTokens,
} from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import type { Scope } from '../measure/scope.js'
import { awaitFills } from '../workload/device-words.js'
import { bytesOf, fillRandom, patterns, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys } from './intranode.js'
import type { BenchContext, Operation } from './operation.js'

const slots = 2

/** What the low-latency operations are measured with on one rank. */
class LowLatencyBench {
  readonly buffer: LowLatencyBuffer
  readonly topkIdx: Tensor
  readonly topkWeights: Tensor
  readonly #context: BenchContext
  readonly #x: readonly Tensor[]
  readonly #out: readonly Partial<PackedRows>[]
  readonly #format: 'bf16' | 'fp8'
  readonly #weighted: boolean

  private constructor(
    context: BenchContext,
    scope: Scope,
    buffer: LowLatencyBuffer,
    kind: { readonly format: 'bf16' | 'fp8'; readonly weighted: boolean },
  ) {
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
  static async create(
    context: BenchContext,
    scope: Scope,
    kind: { readonly format: 'bf16' | 'fp8'; readonly weighted: boolean },
  ): Promise<LowLatencyBench> {
    const { options, group, device } = context
    const { tokens, topk, hidden } = options
    const buffer = await LowLatencyBuffer.create(group, {
      ...{ hidden, maxTokensPerRank: tokens, maxTopk: topk, maxInFlight: slots, device },
    })
    scope.own(buffer)
    const bench = new LowLatencyBench(context, scope, buffer, kind)
    await awaitFills(device)
    return bench
  }

  dispatch(iteration: number): LowLatencyDispatchResult {
    const slot = iteration % slots
    return this.buffer.lowLatencyDispatch(this.#x[slot]!, this.topkIdx, {
      ...{ numExperts: this.#context.options.experts, useFp8: this.#format === 'fp8', slot },
      ...{ out: this.#out[slot]!, stream: this.#context.stopwatch.stream },
      ...(this.#weighted && { topkWeights: this.topkWeights }),
    })
  }

  get sent(): SentTokens {
    const { group, options, routing } = this.#context
    return { rank: group.rank, toRank: routing.matrix[group.rank]!, sentTokens: options.tokens }
  }
}

/** Both phases of a dispatch in one stream. */
export function lowLatencyDispatchOf(format: 'bf16' | 'fp8'): Operation {
  return async (context, scope) => {
    const { options, group, routing, stopwatch } = context
    const { hidden } = options
    const bench = await LowLatencyBench.create(context, scope, { format, weighted: true })
    const rowBytes = format === 'bf16' ? hidden * 2 : hidden + scaleBytesOf(hidden)
    let last: LowLatencyDispatchResult | undefined
    const counted = lowLatencyDispatchBytes(bench.sent, {
      ...{ inputBytes: hidden * 2, rowBytes, selections: routing.received(group.rank).slots },
    })
    return {
      ...counted,
      rule: rules.lowLatencyDispatch,
      ceilings: await copyCeilings(context, scope, counted.bytes),
      subject: {
        ...{ name: 'dispatch', sets: slots },
        async time(iteration) {
          const { streamUs } = await stopwatch.time(() => {
            last = bench.dispatch(iteration)
          })
          bench.buffer.release(last!.handle)
          return streamUs
        },
      },
      check: () => checkDispatched(context, last!),
    }
  }
}

/** Combine of what a dispatch left, as if experts changed nothing. */
export function lowLatencyCombineOf({ weighted }: { readonly weighted: boolean }): Operation {
  return async (context, scope) => {
    const { options, group, routing, stopwatch } = context
    const { tokens, hidden } = options
    const bench = await LowLatencyBench.create(context, scope, { format: 'bf16', weighted })
    const results: LowLatencyDispatchResult[] = []
    const outs = Array.from({ length: slots }, () => scope.zeros([tokens, hidden], 'bf16'))
    let last = outs[0]!
    const rows = weighted ? routing.matrix : routing.selections
    const counted = lowLatencyCombineBytes(
      { ...bench.sent, toRank: rows[group.rank]! },
      { tokens, rowBytes: hidden * 2, selections: routing.received(group.rank).slots },
    )
    return {
      ...counted,
      ...{ rule: weighted ? rules.lowLatencyCombineWeighted : rules.lowLatencyCombine, block: slots },
      ceilings: await copyCeilings(context, scope, counted.bytes),
      subject: {
        ...{ name: 'combine', sets: slots },
        async prepare(iteration) {
          const result = bench.dispatch(iteration)
          await result.event.synchronize()
          results[iteration % slots] = result
        },
        async time(iteration) {
          const { streamUs } = await stopwatch.time(() => {
            const { packedRecvX, handle } = results[iteration % slots]!
            last = outs[iteration % slots]!
            const weights = weighted ? undefined : bench.topkWeights
            bench.buffer.lowLatencyCombine(packedRecvX, bench.topkIdx, weights, handle, {
              ...{ out: last, stream: stopwatch.stream },
            })
          })
          return streamUs
        },
      },
      check() {
        const wrong = sampleRows(tokens).find(
          (token) =>
            !sameNumbers(last.slice(token, token + 1).data as Uint16Array, expectedSum(context, token, weighted)),
        )
        return wrong === undefined ? undefined : `token ${wrong} is not the sum of its rows`
      },
    }
  }
}

function sentRow({ options, device }: BenchContext, rank: number, token: number): Float32Array {
  const place = { device, row: token, rowBytes: options.hidden * 2 }
  return bf16ToF32Array(new Uint16Array(randomRow(inputKeys(options.seed, rank).x, patterns.bf16, place).buffer))
}

/** Compares sampled rows of every expert, their sources and counts with what the senders' keys say. */
function checkDispatched(context: BenchContext, result: LowLatencyDispatchResult): string | undefined {
  const { options, group, routing } = context
  const { hidden, topk } = options
  const { packedRecvX, packedRecvCount, handle } = result
  const received = routing.received(group.rank)
  const [experts, capacity] = packedRecvX.shape as [number, number]
  const rowsOf = Array.from({ length: experts }, (): number[] => [])
  received.topkIdx.forEach((expert, at) => expert >= 0 && rowsOf[expert]!.push(Math.floor(at / topk)))
  const counts = rowsOf.map((rows) => rows.length)
  if (!sameNumbers(packedRecvCount.data as Int32Array, counts)) return 'packedRecvCount is wrong'
  const srcInfo = handle.srcInfo.data as Int32Array
  const flat = packedRecvX.reshape([experts * capacity, hidden])
  for (const expert of sampleRows(experts)) {
    for (const row of sampleRows(rowsOf[expert]!.length)) {
      const at = expert * capacity + row
      const source = rowsOf[expert]![row]!
      const token = received.sourceToken[source]!
      if (srcInfo[at] !== token) return `srcInfo of expert ${expert}, row ${row} is wrong`
      const values = sentRow(context, received.sourceRank[source]!, token)
      const expected =
        packedRecvX.dtype === 'bf16'
          ? new Uint8Array((encode('bf16', values) as Uint16Array).buffer)
          : reference.quantizePerTokenGroup(values, { hidden, groupSize: 128, numerics: 'deepep' }).values
      if (!sameNumbers(bytesOf(flat.slice(at, at + 1)), expected)) return `row ${row} of expert ${expert} is wrong`
    }
  }
  return undefined
}

/** bf16 bits of a token's sum where every expert answers with the row that it got. */
function expectedSum(context: BenchContext, token: number, weighted: boolean): Uint16Array {
  const { options, group, device, routing } = context
  const { topk, hidden } = options
  const x = sentRow(context, group.rank, token)
  const key = inputKeys(options.seed, group.rank).weights
  const weights = new Float32Array(randomRow(key, patterns.scale, { device, row: token, rowBytes: topk * 4 }).buffer)
  const ids = routing.topkIdx(group.rank).subarray(token * topk, (token + 1) * topk)
  const products = Array.from(ids, (id, slot) => ({
    ...{ rank: routing.placement.rankOf(id), values: x.map((value) => value * weights[slot]!) },
  }))
  const sum = (rows: readonly Float32Array[]): Float32Array =>
    rows.slice(1).reduce((total, row) => total.map((value, i) => value + row[i]!), rows[0] ?? new Float32Array(hidden))
  const round = (values: Float32Array): Uint16Array => encode('bf16', values) as Uint16Array
  if (!weighted) return round(sum(products.map(({ values }) => values)))
  const ranks = [...new Set(products.map(({ rank }) => rank))].toSorted((a, b) => a - b)
  const partial = ranks.map((rank) => round(sum(products.filter((p) => p.rank === rank).map(({ values }) => values))))
  return round(sum(partial.map((bits) => bf16ToF32Array(bits))))
}
