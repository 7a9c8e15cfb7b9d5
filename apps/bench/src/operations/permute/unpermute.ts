import { encode, Tensor } from '@moe-ep/core'
import { moeUnpermute, reference, unpermuteAndReduce, unpermuteMaskedAndReduce } from '@moe-ep/deepgemm-permute'
import { moeUnpermuteBytes, rules, unpermuteBytes } from '../../measure/byte-rules.js'
import { type ExpertRows, expertRowsOf, maskedPlacesOf, sortedPlacesOf } from '../../workload/expert-rows.js'
import { rowNumbers } from '../../workload/matrix-rows.js'
import { fillRandom, patterns, randomKey } from '../../workload/random-words.js'
import { sameNumbers, sampleRows } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'

export type ExpertLayout = 'contiguous' | 'masked' | 'sorted'

/** The way back of the bf16 permutes, to the rows that a combine takes. */
export function unpermuteOf(layout: ExpertLayout): Operation {
  return async (context, scope) => {
    const { options, group, device, routing } = context
    const { hidden, topk, seed } = options
    const expertRows = expertRowsOf(routing, group.rank)
    const { received } = expertRows
    const { shape, inverse } = layoutOf(layout, expertRows, topk)
    const slots = [received.rows, topk]
    const topkIdx = Tensor.from(received.topkIdx, slots, 'i32', device)
    const inversePermutation = Tensor.from(inverse, slots, 'i32', device)
    const invPermutedIdx = inversePermutation.reshape([received.rows * topk])
    const { offsets } = sortedPlacesOf(expertRows)
    const expertFirstTokenOffset = Tensor.from(offsets, [offsets.length], 'i64', device)
    const topkWeights = scope.zeros(slots, 'f32')
    fillRandom(topkWeights, randomKey(seed, 'weights', group.rank), patterns.scale)
    const bytesOf = layout === 'sorted' ? moeUnpermuteBytes : unpermuteBytes
    return prepareLocal(context, scope, {
      bytes: bytesOf({ ...received, topk }, hidden * 2),
      rule: layout === 'sorted' ? rules.moeUnpermute : rules.unpermute,
      allocate() {
        const rows = scope.zeros([...shape, hidden], 'bf16')
        fillRandom(rows, randomKey(seed, 'expert rows', group.rank), patterns.bf16)
        const out = scope.zeros([received.rows, hidden], 'bf16')
        return { rows, out, topkIdx, topkWeights, inversePermutation }
      },
      enqueue({ rows, out }, stream) {
        const common = { topkWeights, out, stream }
        if (layout === 'sorted') moeUnpermute(rows, { ...common, invPermutedIdx, expertFirstTokenOffset })
        else if (layout === 'masked') unpermuteMaskedAndReduce(rows, { ...common, topkIdx, inversePermutation })
        else unpermuteAndReduce(rows, { ...common, topkIdx, inversePermutation })
      },
      check({ rows, out, topkIdx, topkWeights, inversePermutation }) {
        const flat = rows.reshape([rows.numel / hidden, hidden])
        const wrong = sampleRows(received.rows).find((token) => {
          const ofToken = (tensor: Tensor): number[] => Array.from(tensor.slice(token, token + 1).data, Number)
          const ids = ofToken(topkIdx)
          const places = ofToken(inversePermutation)
          const [sum] = reference.unpermuteAndReduce(
            // Row i of what is passed belongs to slot i.
            ids.map((id, slot) => (id < 0 ? [] : Array.from(rowNumbers(flat, places[slot]!)))),
            {
              topkIdx: [ids],
              topkWeights: [ofToken(topkWeights)],
              inversePermutation: [ids.map((id, slot) => (id < 0 ? -1 : slot))],
              hidden,
            },
          )
          return !sameNumbers(out.slice(token, token + 1).data as Uint16Array, encode('bf16', sum!) as Uint16Array)
        })
        return wrong === undefined ? undefined : `token ${wrong} differs from the reference`
      },
    })
  }
}

/** Sizes before the columns, and the row of each slot. */
function layoutOf(
  layout: ExpertLayout,
  rows: ExpertRows,
  topk: number,
): { readonly shape: readonly number[]; readonly inverse: Int32Array } {
  if (layout === 'contiguous') return { shape: [rows.capacity], inverse: rows.inverse }
  if (layout === 'sorted') return { shape: [rows.received.rows * topk], inverse: sortedPlacesOf(rows).inverse }
  const { maxTokens, inverse } = maskedPlacesOf(rows)
  return { shape: [rows.numLocalExperts, maxTokens], inverse }
}
