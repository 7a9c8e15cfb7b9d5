import { Tensor } from '@moe-ep/core'
import { computeAlignedM, permute } from '@moe-ep/deepgemm-permute'
import { permuteBytes, rules } from '../../measure/byte-rules.js'
import { expertRowsOf } from '../../workload/expert-rows.js'
import { rowElements } from '../../workload/matrix-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { wrongPermutedRow } from './check-rows.js'
import { movedRowOf, permutedScales, permuteInputs, rowDtype, type RowKind, scaleOptions } from './row-kind.js'

/** `given`: the host knows the counts. `counted`: the device counts, and memory is as large as any routing needs. */
export type Counts = 'given' | 'counted'

/** Permute of the rows that this rank receives in a dispatch. */
export function permuteOf(kind: RowKind, counts: Counts = 'given'): Operation {
  return async (context, scope) => {
    const { hidden, topk } = context.options
    const places = expertRowsOf(context.routing, context.group.rank)
    const { received, numLocalExperts, expertNumTokens, inverse } = places
    const given = counts === 'given'
    const capacity = given ? places.capacity : computeAlignedM({ numTokens: received.rows, topk, numLocalExperts })
    const topkIdx = Tensor.from(received.topkIdx, [received.rows, topk], 'i32', context.device)
    return prepareLocal(context, scope, {
      ...{ bytes: permuteBytes({ ...received, topk }, movedRowOf(kind, hidden)), rule: rules.permute },
      allocate: () => ({
        inputs: permuteInputs(context, scope, kind, received.rows),
        out: {
          rows: scope.zeros([capacity, hidden], rowDtype(kind)),
          ...permutedScales(scope, kind, [capacity], hidden),
          expertIds: scope.zeros([capacity], 'i32'),
          inversePermutation: scope.zeros([received.rows, topk], 'i32'),
        },
      }),
      enqueue({ inputs, out }, stream) {
        const experts = { numLocalExperts, ...(given && { expertNumTokensHost: expertNumTokens }) }
        permute(inputs.x, { topkIdx, ...experts, ...scaleOptions(inputs, kind), out, stream })
      },
      check({ inputs, out }) {
        if (!sameNumbers(out.inversePermutation.data as Int32Array, inverse)) return 'inversePermutation is wrong'
        const { rows, expertIds, scales } = out
        return wrongPermutedRow({
          ...{ kind, inputs, topk, topkIdx: received.topkIdx, inverse, rows, expertIds },
          ...(scales && { scalesAt: (place) => rowElements(scales, place) }),
        })
      },
    })
  }
}
