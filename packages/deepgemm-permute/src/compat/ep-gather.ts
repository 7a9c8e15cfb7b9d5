import type { Stream, Tensor } from '@moe-ep/core'
import { unpermuteAndReduce } from '../unpermute-and-reduce.js'

export interface EpGatherOptions {
  /** [rows, H] of bf16, f16 or f32, any H. */
  readonly inputTensor: Tensor
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly recvTopkIds: Tensor
  /** f32 [M, K]. */
  readonly recvTopkWeight: Tensor
  /** i32 [M, K]: row of each slot, as `epScatter` wrote it. */
  readonly inputIndex: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /** [M, H] of bf16, f16 or f32, written. */
  readonly outputTensor: Tensor
  /** Columns at a time. Without effect: any number of columns works. */
  readonly blockD?: number
  /** Without effect: there are no warps to choose. */
  readonly numWarps?: number
  /** @default the device's default stream */
  readonly stream?: Stream
}

/**
 * The weighted sum of each token's local rows, into memory that the caller brings: `unpermuteAndReduce` under its older name.
 *
 * @throws ERR_MOE_EP_ARGUMENT as `unpermuteAndReduce` does.
 */
export function epGather(options: EpGatherOptions): void {
  const { expertMap, stream } = options
  unpermuteAndReduce(options.inputTensor, {
    topkIdx: options.recvTopkIds,
    topkWeights: options.recvTopkWeight,
    inversePermutation: options.inputIndex,
    ...(expertMap && { expertMap }),
    out: options.outputTensor,
    ...(stream && { stream }),
  })
}
