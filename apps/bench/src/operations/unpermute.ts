import { bf16ToF32Array, encode, Tensor } from '@moe-ep/core'
import { reference, unpermuteAndReduce } from '@moe-ep/deepgemm-permute'
import { rules, unpermuteBytes } from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { rotatingSets } from '../measure/rotation.js'
import { streamCase } from '../measure/timed-case.js'
import { expertRowsOf } from '../workload/expert-rows.js'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import type { Operation } from './operation.js'

/** The way back of the bf16 permute, to the rows that a combine takes. */
export const unpermute: Operation = async (context, scope) => {
  const { options, group, device, stopwatch, routing } = context
  const { hidden, topk, seed } = options
  const { received, capacity, inverse } = expertRowsOf(routing, group.rank)
  const bytes = unpermuteBytes({ ...received, topk }, hidden * 2)
  const slots = [received.rows, topk]
  const topkIdx = Tensor.from(received.topkIdx, slots, 'i32', device)
  const inversePermutation = Tensor.from(inverse, slots, 'i32', device)
  const topkWeights = scope.zeros(slots, 'f32')
  fillRandom(topkWeights, randomKey(seed, 'weights', group.rank), patterns.scale)
  const sets = Array.from({ length: rotatingSets(bytes) }, () => {
    const rows = scope.zeros([capacity, hidden], 'bf16')
    fillRandom(rows, randomKey(seed, 'expert rows', group.rank), patterns.bf16)
    return { rows, out: scope.zeros([received.rows, hidden], 'bf16') }
  })
  let last = sets[0]!
  return {
    ...{ bytes, rule: rules.unpermute, ceilings: await copyCeilings(context, scope, bytes) },
    subject: streamCase({
      ...{ name: 'unpermute', stopwatch, sets: sets.length },
      enqueue(set) {
        last = sets[set]!
        const { rows, out } = last
        unpermuteAndReduce(rows, { topkIdx, topkWeights, inversePermutation, out, stream: stopwatch.stream })
      },
    }),
    check() {
      const wrong = sampleRows(received.rows).find((token) => {
        const ofToken = (tensor: Tensor): number[] => Array.from(tensor.slice(token, token + 1).data, Number)
        const places = ofToken(inversePermutation)
        const used = places.map((place) =>
          place < 0 ? [] : Array.from(bf16ToF32Array(last.rows.slice(place, place + 1).data as Uint16Array)),
        )
        const [sum] = reference.unpermuteAndReduce(used, {
          topkIdx: [ofToken(topkIdx)],
          topkWeights: [ofToken(topkWeights)],
          // Row i of what is passed belongs to slot i.
          inversePermutation: [places.map((place, slot) => (place < 0 ? -1 : slot))],
          hidden,
        })
        return !sameNumbers(last.out.slice(token, token + 1).data as Uint16Array, encode('bf16', sum!) as Uint16Array)
      })
      return wrong === undefined ? undefined : `token ${wrong} differs from the reference`
    },
  }
}
