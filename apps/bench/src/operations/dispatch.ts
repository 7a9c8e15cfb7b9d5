import type { Tensor } from '@moe-ep/core'
import type { DispatchResult } from '@moe-ep/intranode-ht'
import { dispatchBytes, dispatchedRowBytes, rules, scaleBytesOf } from '../measure/byte-rules.js'
import { inHostMemory } from '../measure/host-copies.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import { bytesOf, type Pattern, patterns, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys, IntranodeBench } from './intranode.js'
import type { BenchContext, Operation } from './operation.js'

export interface DispatchVariant {
  readonly kind: 'bf16' | 'fp8'
  /**
   * 'fresh': counts are exchanged, and the host waits for them. 'cached': the plan of an earlier dispatch is used; counts, ids
   * and weights do not travel then. 'worst-case': counts are exchanged, the host does not wait.
   */
  readonly mode: 'fresh' | 'cached' | 'worst-case'
}

export function dispatchOf({ kind, mode }: DispatchVariant): Operation {
  return async (context, scope) => {
    const { options, stopwatch, routing } = context
    const { hidden } = options
    const bench = await IntranodeBench.create(context, scope, { kind })
    const earlier = await bench.dispatchOnce()
    const payloadBytes = kind === 'bf16' ? hidden * 2 : hidden + scaleBytesOf(hidden)
    const row = { payloadBytes, topk: mode === 'cached' ? 0 : options.topk }
    const rowBytes = dispatchedRowBytes(row)
    let last = earlier
    return {
      ...dispatchBytes(bench.sent, row),
      rule: rules.dispatch,
      ceilings: await pushCeilings(context, scope, { rows: routing.matrix, rowBytes, sixteenths: 2 }),
      subject: {
        ...{ name: 'dispatch', sets: bench.slots },
        async time(iteration) {
          const { streamUs } = await stopwatch.time(async () => {
            if (mode === 'worst-case') last = bench.dispatchWorstCase(iteration)
            else last = await bench.dispatch(iteration, mode === 'cached' ? earlier : undefined)
          })
          last.handle.lease.release()
          return streamUs
        },
      },
      check: async () => checkDispatched(context, kind, await inHostMemory(context, scope, last)),
    }
  }
}

/** Compares what lies in the host's memory with what the senders' keys say. */
function checkDispatched(context: BenchContext, kind: 'bf16' | 'fp8', result: DispatchResult): string | undefined {
  const { options, group, device, routing } = context
  const { hidden, topk, seed } = options
  const { recvX, recvXScales, recvTopkIdx, recvTopkWeights, handle } = result
  const received = routing.received(group.rank)
  // At worst-case size more rows follow, without experts.
  const filled = (tensor: Tensor): Int32Array => tensor.slice(0, received.rows).data as Int32Array
  if (!sameNumbers(filled(handle.recvSrcIdx), received.sourceToken)) return 'recvSrcIdx is wrong'
  if (recvTopkIdx && !sameNumbers(filled(recvTopkIdx), received.topkIdx)) return 'recvTopkIdx is wrong'
  const behind = recvTopkIdx?.slice(received.rows, recvTopkIdx.shape[0]!).data as Int32Array | undefined
  if (behind?.some((id) => id !== -1)) return 'a row behind the last one has an expert'
  for (const row of sampleRows(received.rows)) {
    const keys = inputKeys(seed, received.sourceRank[row]!)
    const token = received.sourceToken[row]!
    const rowOf = (key: number, pattern: Pattern, rowBytes: number): Uint8Array =>
      randomRow(key, pattern, { device, row: token, rowBytes })
    const expected = rowOf(keys.x, patterns[kind], kind === 'bf16' ? hidden * 2 : hidden)
    if (!sameNumbers(bytesOf(recvX.slice(row, row + 1)), expected)) return `row ${row} is not that of its token`
    const scales = recvXScales && bytesOf(recvXScales.slice(row, row + 1))
    if (scales && !sameNumbers(scales, rowOf(keys.scales, patterns.scale, scaleBytesOf(hidden)))) {
      return `scales of row ${row} are not those of its token`
    }
    if (recvTopkWeights === undefined) continue
    const sent = new Float32Array(rowOf(keys.weights, patterns.scale, topk * 4).buffer)
    const local = sent.map((weight, slot) => (received.topkIdx[row * topk + slot]! < 0 ? 0 : weight))
    if (!sameNumbers(recvTopkWeights.slice(row, row + 1).data as Float32Array, local))
      return `weights of row ${row} are wrong`
  }
  return undefined
}
