import { MoeEpError } from '@moe-ep/core'
import type { LayerResult } from './layer-result.js'

/** @throws ERR_MOE_EP_CHECK_FAILED, with the reasons, when a run came to its end and its result is not ok. */
export function requireRight({ ok, deterministic, maxRelError, tolerance }: LayerResult): void {
  if (ok) return
  const reasons = [
    ...(maxRelError <= tolerance
      ? []
      : [
          `the error against the dense computation is ${maxRelError.toExponential(2)}, at most ${tolerance} is allowed`,
        ]),
    ...(deterministic ? [] : ['passes of the same input gave different bits']),
  ]
  throw new MoeEpError('ERR_MOE_EP_CHECK_FAILED', reasons.join('; '))
}
