import type { Stream, Tensor } from '@moe-ep/core'
import { epGather } from './ep-gather.js'

export interface DeepgemmUnpermuteAndReduceOptions {
  /** [rows, H] of bf16, f16 or f32: what the grouped GEMM gave. */
  readonly a: Tensor
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly topkIds: Tensor
  /** f32 [M, K]. Pass ones when the weights were applied before. */
  readonly topkWeights: Tensor
  /** i32 [M, K]: row of each slot, as `deepgemmMoePermute` gave it. */
  readonly invPerm: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /** [M, H] of bf16, f16 or f32, written. */
  readonly output: Tensor
  /** @default the device's default stream */
  readonly stream?: Stream
}

/**
 * The weighted sum of each token's local rows, into `output`: `unpermuteAndReduce` under its older name.
 *
 * @throws ERR_MOE_EP_ARGUMENT as `unpermuteAndReduce` does.
 */
export function deepgemmUnpermuteAndReduce(options: DeepgemmUnpermuteAndReduceOptions): void {
  const { expertMap, stream } = options
  epGather({
    inputTensor: options.a,
    recvTopkIds: options.topkIds,
    recvTopkWeight: options.topkWeights,
    inputIndex: options.invPerm,
    ...(expertMap && { expertMap }),
    outputTensor: options.output,
    ...(stream && { stream }),
  })
}
