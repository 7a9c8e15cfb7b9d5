import { Tensor } from '@moe-ep/core'
import { type DispatchLayout, getDispatchLayout } from '@moe-ep/layout'
import { layoutBytes, rules } from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { rotatingSets } from '../measure/rotation.js'
import { streamCase } from '../measure/timed-case.js'
import { sameNumbers } from '../workload/sample-rows.js'
import type { Operation } from './operation.js'

export const dispatchLayout: Operation = async (context, scope) => {
  const { options, group, device, stopwatch, routing } = context
  const { tokens, topk, experts, ranks } = options
  const bytes = layoutBytes({ tokens, topk, experts, ranks })
  const ids = routing.topkIdx(group.rank)
  const inputs = Array.from({ length: rotatingSets(bytes) }, () => Tensor.from(ids, [tokens, topk], 'i32', device))
  let last: DispatchLayout | undefined
  return {
    ...{ bytes, rule: rules.layout, ceilings: await copyCeilings(context, scope, bytes) },
    subject: streamCase({
      ...{ name: 'layout', stopwatch, sets: inputs.length },
      enqueue(set) {
        last = getDispatchLayout(inputs[set]!, { numExperts: experts, numRanks: ranks, stream: stopwatch.stream })
      },
    }),
    check() {
      const perExpert = new Int32Array(experts)
      const inRank = new Uint8Array(tokens * ranks)
      ids.forEach((expert, slot) => {
        perExpert[expert]!++
        inRank[Math.floor(slot / topk) * ranks + routing.placement.rankOf(expert)] = 1
      })
      if (!sameNumbers(last!.numTokensPerExpert.data as Int32Array, perExpert)) return 'numTokensPerExpert is wrong'
      if (!sameNumbers(last!.isTokenInRank.data as Uint8Array, inRank)) return 'isTokenInRank is wrong'
      if (!sameNumbers(last!.numTokensPerRank.data as Int32Array, routing.matrix[group.rank]!))
        return 'numTokensPerRank is wrong'
      return undefined
    },
  }
}
