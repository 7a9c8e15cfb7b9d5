import { argumentError, decode, type DType, encode, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { zeroInReplays } from './zero-in-replays.js'

/** Options that every operation on gates and ups takes. */
export interface GatedOptions {
  /**
   * With L: gates are limited to at most L and ups to [-L, L] first. L is rounded to the dtype of `x`.
   * @default no limit
   */
  readonly clampLimit?: number
  /**
   * i32 [E], for `x` [E, T, 2H] only: rows of each matrix that are in use, from the first on. Others are neither read nor
   * written. Read when the work runs, and must not change until it has ended: rows of later calls on the stream might be left
   * out. What lies outside 0 to T is taken as the nearest of these.
   */
  readonly counts?: Tensor
}

/** Facts of a checked input [M, 2H] or [E, T, 2H]. */
export interface GatedInput {
  /** E; absent for a matrix. */
  readonly batch?: number
  readonly rows: number
  readonly hidden: number
  readonly outputShape: readonly number[]
  readonly limit: number
}

/** @throws ERR_MOE_EP_ARGUMENT. */
export function requireGatedInput(x: Tensor, { clampLimit, counts }: GatedOptions): GatedInput {
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'] })
  const width = x.shape.at(-1) ?? 0
  if ((x.shape.length !== 2 && x.shape.length !== 3) || width === 0 || width % 2 !== 0) {
    throw argumentError('x', 'shape [M, 2H] or [E, T, 2H], H 1 or more', x.toString())
  }
  const batch = x.shape.length === 3 ? { batch: x.shape[0]! } : {}
  if (counts !== undefined) {
    if (batch.batch === undefined) throw argumentError('counts', 'to be absent for x of two dimensions', counts)
    requireTensor('counts', counts, { dtype: 'i32', shape: [batch.batch], device: x.device })
  }
  if (clampLimit !== undefined && !(clampLimit > 0)) throw argumentError('clampLimit', 'a positive number', clampLimit)
  const limit = clampLimit === undefined ? Infinity : Number(decode(x.dtype, encode(x.dtype, [clampLimit]))[0])
  const hidden = width / 2
  return { ...batch, rows: x.shape.at(-2)!, hidden, outputShape: [...x.shape.slice(0, -1), hidden], limit }
}

/** A new tensor for rows of results: zeroed where rows that are not in use stay as they are. */
export function newRows(shape: readonly number[], x: Tensor, dtype: DType, masked: boolean, stream: Stream): Tensor {
  if (!masked) return Tensor.empty(shape, dtype, x.device)
  const zeros = Tensor.zeros(shape, dtype, x.device, { stream })
  zeroInReplays(zeros.memory, stream)
  return zeros
}
