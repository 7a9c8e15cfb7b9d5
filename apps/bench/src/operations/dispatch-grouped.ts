import type { GroupedDispatchResult } from '@moe-ep/intranode-ht'
import { dispatchedRowBytes, dispatchGroupedBytes, rules, scaleBytesOf } from '../measure/byte-rules.js'
import { inHostMemory } from '../measure/host-copies.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import { expertRowsOf } from '../workload/expert-rows.js'
import { rowBytes, rowElements } from '../workload/matrix-rows.js'
import { type Pattern, patterns, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys, IntranodeBench } from './intranode.js'
import type { BenchContext, Operation } from './operation.js'

export interface GroupedDispatchVariant {
  readonly kind: 'bf16' | 'fp8'
  /** Whether the plan of an earlier grouped dispatch is used. */
  readonly cached: boolean
}

/** Dispatch of a row for each selection, straight into the contiguous layout of grouped GEMMs. */
export function dispatchGroupedOf({ kind, cached }: GroupedDispatchVariant): Operation {
  return async (context, scope) => {
    const { options, stopwatch } = context
    const { hidden, topk } = options
    const bench = await IntranodeBench.create(context, scope, { kind, grouped: true })
    const earlier = await bench.dispatchGroupedOnce()
    const payloadBytes = kind === 'bf16' ? hidden * 2 : hidden + scaleBytesOf(hidden)
    const pushedBytes = dispatchedRowBytes({ payloadBytes, topk: 0 })
    let last = earlier
    return {
      ...dispatchGroupedBytes(bench.sentGrouped, { payloadBytes, topk }),
      rule: rules.dispatchGrouped,
      ceilings: await pushCeilings(context, scope, { rows: bench.crossingRows, rowBytes: pushedBytes, sixteenths: 3 }),
      subject: {
        ...{ name: 'dispatch', sets: bench.slots },
        async time(iteration) {
          const { streamUs } = await stopwatch.time(async () => {
            last = await bench.dispatchGrouped(iteration, cached ? earlier : undefined)
          })
          last.handle.lease.release()
          return streamUs
        },
      },
      check: async () => checkGrouped(context, kind, await inHostMemory(context, scope, last)),
    }
  }
}

/** Compares what lies in the host's memory with what the senders' keys say, at the places where a permute would put it. */
function checkGrouped(context: BenchContext, kind: 'bf16' | 'fp8', result: GroupedDispatchResult): string | undefined {
  const { device } = context
  const { hidden, topk, seed } = context.options
  const { recvX, recvXScales, expertIds, handle } = result
  const { received, expertNumTokens, inverse } = expertRowsOf(context.routing, context.group.rank)
  const counts = handle.plan.numRecvSelections.data as Int32Array
  // A rank without experts has no counts.
  if (!sameNumbers(counts, expertNumTokens.subarray(0, counts.length))) return 'numRecvSelections is wrong'
  for (const row of sampleRows(received.rows)) {
    const keys = inputKeys(seed, received.sourceRank[row]!)
    const token = received.sourceToken[row]!
    const rowOf = (key: number, pattern: Pattern, rowBytes: number): Uint8Array =>
      randomRow(key, pattern, { device, row: token, rowBytes })
    const expected = rowOf(keys.x, patterns[kind], kind === 'bf16' ? hidden * 2 : hidden)
    const scales = new Float32Array(rowOf(keys.scales, patterns.scale, scaleBytesOf(hidden)).buffer)
    for (let slot = row * topk; slot < (row + 1) * topk; slot++) {
      const place = inverse[slot]!
      if (place < 0) continue
      if (expertIds.data[place] !== received.topkIdx[slot]) return `the expert of row ${place} is wrong`
      if (!sameNumbers(rowBytes(recvX, place), expected)) return `row ${place} is not that of its token`
      if (recvXScales && !sameNumbers(rowElements(recvXScales, place), scales))
        return `scales of row ${place} are wrong`
    }
  }
  return undefined
}
