import { bf16ToF32Array, encode, type Tensor } from '@moe-ep/core'
import { reference } from '@moe-ep/low-latency'
import { matricesOf, rowElements } from '../workload/matrix-rows.js'
import { bytesOf, patterns, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys } from './intranode.js'
import { globalScale, type LowLatencyKind } from './low-latency-bench.js'
import type { BenchContext } from './operation.js'

/** What is looked at of a dispatch. */
export interface DispatchedTensors {
  readonly packedRecvX: Tensor
  readonly packedRecvXScales: Tensor | undefined
  readonly packedRecvCount: Tensor
  readonly srcInfo: Tensor
}

/** bf16 values of what a rank sends as a token. */
export function sentRow({ options, device }: BenchContext, rank: number, token: number): Float32Array {
  const place = { device, row: token, rowBytes: options.hidden * 2 }
  return bf16ToF32Array(new Uint16Array(randomRow(inputKeys(options.seed, rank).x, patterns.bf16, place).buffer))
}

/** Compares sampled rows of every expert with their scales, their sources and counts with what the senders' keys say. The tensors lie in the host's memory. */
export function checkDispatched(
  context: BenchContext,
  { packedRecvX, packedRecvXScales, packedRecvCount, srcInfo: sources }: DispatchedTensors,
  format: LowLatencyKind['format'],
): string | undefined {
  const { options, group, routing } = context
  const { hidden, topk } = options
  const received = routing.received(group.rank)
  const [experts, capacity] = packedRecvX.shape as [number, number]
  const rowsOf = Array.from({ length: experts }, (): number[] => [])
  received.topkIdx.forEach((expert, at) => expert >= 0 && rowsOf[expert]!.push(Math.floor(at / topk)))
  const counts = rowsOf.map((rows) => rows.length)
  if (!sameNumbers(packedRecvCount.data as Int32Array, counts)) return 'packedRecvCount is wrong'
  const srcInfo = sources.data as Int32Array
  const flat = packedRecvX.reshape([experts * capacity, hidden])
  const scales = packedRecvXScales && matricesOf(packedRecvXScales)
  for (const expert of sampleRows(experts)) {
    for (const row of sampleRows(rowsOf[expert]!.length)) {
      const at = expert * capacity + row
      const source = rowsOf[expert]![row]!
      const token = received.sourceToken[source]!
      if (srcInfo[at] !== token) return `srcInfo of expert ${expert}, row ${row} is wrong`
      const values = sentRow(context, received.sourceRank[source]!, token)
      const cast = reference.castRow(values, { format, xGlobalScale: globalScale })
      if (scales !== undefined && !sameNumbers(rowElements(scales[expert]!, row), cast.scales!))
        return `scales of row ${row} of expert ${expert} are wrong`
      const { buffer, byteOffset, byteLength } = cast.values
      const expected = new Uint8Array(buffer, byteOffset, byteLength)
      if (!sameNumbers(bytesOf(flat.slice(at, at + 1)), expected)) return `row ${row} of expert ${expert} is wrong`
    }
  }
  return undefined
}

/** bf16 bits of a token's sum where every expert answers with `x`. */
export function expectedSum(context: BenchContext, token: number, x: Float32Array, kind: LowLatencyKind): Uint16Array {
  const { weighted, useLogfmt = false } = kind
  const home = (row: Float32Array): Float32Array =>
    useLogfmt ? Float32Array.from(reference.throughLogFmt(Array.from(row))) : row
  const { options, group, device, routing } = context
  const { topk, hidden } = options
  const key = inputKeys(options.seed, group.rank).weights
  const weights = new Float32Array(randomRow(key, patterns.scale, { device, row: token, rowBytes: topk * 4 }).buffer)
  const ids = routing.topkIdx(group.rank).subarray(token * topk, (token + 1) * topk)
  const products = Array.from(ids, (id, slot) => ({
    ...{ rank: routing.placement.rankOf(id), values: (weighted ? x : home(x)).map((value) => value * weights[slot]!) },
  }))
  const sum = (rows: readonly Float32Array[]): Float32Array =>
    rows.slice(1).reduce((total, row) => total.map((value, i) => value + row[i]!), rows[0] ?? new Float32Array(hidden))
  const round = (values: Float32Array): Uint16Array => encode('bf16', values) as Uint16Array
  if (!weighted) return round(sum(products.map(({ values }) => values)))
  const ranks = [...new Set(products.map(({ rank }) => rank))].toSorted((a, b) => a - b)
  const partial = ranks.map((rank) => round(sum(products.filter((p) => p.rank === rank).map(({ values }) => values))))
  return round(sum(partial.map((bits) => home(bf16ToF32Array(bits)))))
}
