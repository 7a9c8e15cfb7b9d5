import { Tensor } from '@moe-ep/core'
import { countExpertNumTokens } from '@moe-ep/deepgemm-permute'
import { countBytes, rules } from '../../measure/byte-rules.js'
import { expertRowsOf } from '../../workload/expert-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'

export const countTokens: Operation = async (context, scope) => {
  const { topk } = context.options
  const { received, numLocalExperts, expertNumTokens } = expertRowsOf(context.routing, context.group.rank)
  const shape = [received.rows, topk]
  return prepareLocal(context, scope, {
    ...{ bytes: countBytes({ rows: received.rows, topk }, numLocalExperts), rule: rules.count },
    allocate: () => Tensor.from(received.topkIdx, shape, 'i32', context.device),
    enqueue: (topkIdx, stream) => countExpertNumTokens(topkIdx, { numLocalExperts, stream }),
    check: (_, counts) =>
      sameNumbers(counts.data as Int32Array, expertNumTokens) ? undefined : 'the counts are wrong',
  })
}
