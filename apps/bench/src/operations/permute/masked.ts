import { Tensor } from '@moe-ep/core'
import { permuteMasked } from '@moe-ep/deepgemm-permute'
import { permuteMaskedBytes, rules } from '../../measure/byte-rules.js'
import { expertRowsOf, maskedPlacesOf } from '../../workload/expert-rows.js'
import { matricesOf, rowElements } from '../../workload/matrix-rows.js'
import { sameNumbers } from '../../workload/sample-rows.js'
import { prepareLocal } from '../local-operation.js'
import type { Operation } from '../operation.js'
import { wrongPermutedRow } from './check-rows.js'
import { movedRowOf, permutedScales, permuteInputs, rowDtype, type RowKind, scaleOptions } from './row-kind.js'

/** The rows that this rank receives, each expert's in a batch of its own. */
export function permuteMaskedOf(kind: RowKind): Operation {
  return async (context, scope) => {
    const { hidden, topk } = context.options
    const expertRows = expertRowsOf(context.routing, context.group.rank)
    const { received, numLocalExperts, expertNumTokens } = expertRows
    const { maxTokens, inverse } = maskedPlacesOf(expertRows)
    const topkIdx = Tensor.from(received.topkIdx, [received.rows, topk], 'i32', context.device)
    const lead = [numLocalExperts, maxTokens]
    return prepareLocal(context, scope, {
      ...{ bytes: permuteMaskedBytes({ ...received, topk }, movedRowOf(kind, hidden)), rule: rules.permuteMasked },
      allocate: () => ({
        inputs: permuteInputs(context, scope, kind, received.rows),
        out: {
          rows: scope.zeros([...lead, hidden], rowDtype(kind)),
          ...permutedScales(scope, kind, lead, hidden),
          maskedM: scope.zeros([numLocalExperts], 'i32'),
          inversePermutation: scope.zeros([received.rows, topk], 'i32'),
        },
      }),
      enqueue: ({ inputs, out }, stream) =>
        permuteMasked(inputs.x, { topkIdx, numLocalExperts, maxTokens, ...scaleOptions(inputs, kind), out, stream }),
      check({ inputs, out }) {
        if (!sameNumbers(out.inversePermutation.data as Int32Array, inverse)) return 'inversePermutation is wrong'
        if (!sameNumbers(out.maskedM.data as Int32Array, expertNumTokens)) return 'maskedM is wrong'
        const scales = out.scales && matricesOf(out.scales)
        return wrongPermutedRow({
          ...{ kind, inputs, topk, topkIdx: received.topkIdx, inverse },
          rows: out.rows.reshape([numLocalExperts * maxTokens, hidden]),
          ...(scales && {
            scalesAt: (place) => rowElements(scales[Math.floor(place / maxTokens)]!, place % maxTokens),
          }),
        })
      },
    })
  }
}
