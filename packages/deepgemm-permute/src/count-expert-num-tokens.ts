import { requireInteger, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { requireExpertMap, requireTopkIdx } from './checks.js'
import { native } from './native.js'

export interface CountExpertNumTokensOptions {
  /** Experts of this rank. */
  readonly numLocalExperts: number
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /** @default the device's default stream */
  readonly stream?: Stream
}

/**
 * Counts the slots of every local expert. Slots, not tokens: a token that names an expert twice counts twice.
 *
 * @param topkIdx i32 or i64 [M, K]: expert ids, -1 for "no expert". May have no elements.
 * @returns i32 [numLocalExperts], every element written; enqueued.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id out of range.
 */
export function countExpertNumTokens(topkIdx: Tensor, options: CountExpertNumTokensOptions): Tensor {
  requireTopkIdx(topkIdx)
  const { numLocalExperts, expertMap, stream = topkIdx.device.defaultStream } = options
  requireInteger('numLocalExperts', numLocalExperts, 1)
  requireExpertMap(expertMap, topkIdx.device)
  const out = Tensor.empty([numLocalExperts], 'i32', topkIdx.device)
  traceOperation('deepgemm-permute.countExpertNumTokens', stream, topkIdx.byteLength + out.byteLength, () =>
    native().countExpertNumTokens(stream.handle, topkIdx.handle, expertMap?.handle, out.handle),
  )
  return out
}
