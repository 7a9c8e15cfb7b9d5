import { Tensor } from '@moe-ep/core'
import { defaultNumChannels, getChannelPrefixMatrix, getRankPrefixMatrix, reference } from '@moe-ep/layout'
import { channelPrefixBytes, rankPrefixBytes, rules } from '../measure/byte-rules.js'
import { sameNumbers } from '../workload/sample-rows.js'
import { prepareLocal } from './local-operation.js'
import type { Operation } from './operation.js'

export const rankPrefixMatrix: Operation = async (context, scope) => {
  const { world: ranks } = context.options
  const { matrix } = context.routing
  return prepareLocal(context, scope, {
    ...{ bytes: rankPrefixBytes({ ranks }), rule: rules.rankPrefix },
    allocate: () => Tensor.from(matrix.flat(), [ranks, ranks], 'i32', context.device),
    enqueue: (counts, stream) => getRankPrefixMatrix(counts, { stream }),
    check(_, sums) {
      const expected = reference.getRankPrefixMatrix(matrix).flat()
      return sameNumbers(sums.data as Int32Array, expected) ? undefined : 'the sums differ from the reference'
    },
  })
}

export const channelPrefixMatrix: Operation = async (context, scope) => {
  const { tokens, topk, world: ranks } = context.options
  const { placement } = context.routing
  const topkIdx = context.routing.topkIdx(context.group.rank)
  const inRank = new Uint8Array(tokens * ranks)
  topkIdx.forEach((expert, slot) => {
    inRank[Math.floor(slot / topk) * ranks + placement.rankOf(expert)] = 1
  })
  return prepareLocal(context, scope, {
    ...{ bytes: channelPrefixBytes({ tokens, ranks, channels: defaultNumChannels }), rule: rules.channelPrefix },
    allocate: () => Tensor.from(inRank, [tokens, ranks], 'bool', context.device),
    enqueue: (isTokenInRank, stream) => getChannelPrefixMatrix(isTokenInRank, { stream }),
    check(_, counts) {
      const rows = Array.from({ length: tokens }, (_, token) =>
        Array.from(inRank.subarray(token * ranks, (token + 1) * ranks), Boolean),
      )
      const expected = reference.getChannelPrefixMatrix(rows, ranks, defaultNumChannels).flat()
      return sameNumbers(counts.data as Int32Array, expected) ? undefined : 'the counts differ from the reference'
    },
  })
}
