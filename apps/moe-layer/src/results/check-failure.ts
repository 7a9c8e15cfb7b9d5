import { MoeEpError } from '@moe-ep/core'
import type { LayerResult } from './layer-result.js'

/** Why a result that came to its end is not ok, as an error with the code ERR_MOE_EP_CHECK_FAILED; undefined when it is. */
export function checkFailureOf({ ok, deterministic, maxRelError, tolerance }: LayerResult): MoeEpError | undefined {
  if (ok) return undefined
  const reasons = [
    ...(maxRelError <= tolerance
      ? []
      : [
          `the error against the dense computation is ${maxRelError.toExponential(2)}, at most ${tolerance} is allowed`,
        ]),
    ...(deterministic ? [] : ['passes of the same input gave different bits']),
  ]
  return new MoeEpError('ERR_MOE_EP_CHECK_FAILED', reasons.join('; '))
}
