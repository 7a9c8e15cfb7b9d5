import { Tensor } from '@moe-ep/core'
import { getDispatchLayout } from '@moe-ep/layout'
import { layoutBytes, rules } from '../measure/byte-rules.js'
import { sameNumbers } from '../workload/sample-rows.js'
import { prepareLocal } from './local-operation.js'
import type { Operation } from './operation.js'

export const dispatchLayout: Operation = async (context, scope) => {
  const { options, group, device, routing } = context
  const { tokens, topk, experts, world: ranks } = options
  const ids = routing.topkIdx(group.rank)
  return prepareLocal(context, scope, {
    ...{ bytes: layoutBytes({ tokens, topk, experts, ranks }), rule: rules.layout },
    allocate: () => Tensor.from(ids, [tokens, topk], 'i32', device),
    enqueue: (topkIdx, stream) => getDispatchLayout(topkIdx, { numExperts: experts, numRanks: ranks, stream }),
    check(_, { numTokensPerExpert, isTokenInRank, numTokensPerRank }) {
      const perExpert = new Int32Array(experts)
      const inRank = new Uint8Array(tokens * ranks)
      ids.forEach((expert, slot) => {
        perExpert[expert]!++
        inRank[Math.floor(slot / topk) * ranks + routing.placement.rankOf(expert)] = 1
      })
      if (!sameNumbers(numTokensPerExpert.data as Int32Array, perExpert)) return 'numTokensPerExpert is wrong'
      if (!sameNumbers(isTokenInRank.data as Uint8Array, inRank)) return 'isTokenInRank is wrong'
      if (!sameNumbers(numTokensPerRank.data as Int32Array, routing.matrix[group.rank]!))
        return 'numTokensPerRank is wrong'
      return undefined
    },
  })
}
