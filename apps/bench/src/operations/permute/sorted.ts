import { Tensor } from '@moe-ep/core'
import { moePermute } from '@moe-ep/deepgemm-permute'
import { moePermuteBytes, rules } from '../../measure/byte-rules.js'
import { expertRowsOf, sortedPlacesOf } from '../../workload/expert-rows.js'
import { rowElements } from '../../workload/matrix-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { wrongPermutedRow } from './check-rows.js'
import { movedRowOf, permutedScales, permuteInputs, rowDtype, type RowKind, scaleOptions } from './row-kind.js'

/** All slots of the received rows sorted by expert, without padding. */
export function moePermuteOf(kind: RowKind): Operation {
  return async (context, scope) => {
    const { hidden, topk } = context.options
    const expertRows = expertRowsOf(context.routing, context.group.rank)
    const { received, numLocalExperts } = expertRows
    const { offsets, inverse } = sortedPlacesOf(expertRows)
    const topkIdx = Tensor.from(received.topkIdx, [received.rows, topk], 'i32', context.device)
    const capacity = received.rows * topk
    return prepareLocal(context, scope, {
      ...{ bytes: moePermuteBytes({ ...received, topk }, movedRowOf(kind, hidden)), rule: rules.moePermute },
      allocate: () => ({
        inputs: permuteInputs(context, scope, kind, received.rows),
        out: {
          rows: scope.zeros([capacity, hidden], rowDtype(kind)),
          ...permutedScales(scope, kind, [capacity], hidden),
          mIndices: scope.zeros([capacity], 'i32'),
          invPermutedIdx: scope.zeros([capacity], 'i32'),
        },
      }),
      enqueue: ({ inputs, out }, stream) =>
        moePermute(inputs.x, { topkIdx, numLocalExperts, ...scaleOptions(inputs, kind), out, stream }),
      check({ inputs, out }, { expertFirstTokenOffset }) {
        const found = Array.from(expertFirstTokenOffset.data, Number)
        if (!sameNumbers(found, offsets)) return 'expertFirstTokenOffset is wrong'
        if (!sameNumbers(out.invPermutedIdx.data as Int32Array, inverse)) return 'invPermutedIdx is wrong'
        const { rows, mIndices: expertIds, scales } = out
        return wrongPermutedRow({
          ...{ kind, inputs, topk, topkIdx: received.topkIdx, inverse, rows, expertIds },
          ...(scales && { scalesAt: (place) => rowElements(scales, place) }),
        })
      },
    })
  }
}
