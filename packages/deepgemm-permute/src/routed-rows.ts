import { argumentError, type DType, requireInteger, requireStream, type Stream, type Tensor } from '@moe-ep/core'
import { requireExpertMap, requireRows, requireTopkIdx } from './checks.js'
import type { ScaleOptions } from './scales.js'

/** Where the rows of tokens go: what all permuting operations take. */
export interface RoutedRowsOptions extends ScaleOptions {
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly topkIdx: Tensor
  /** Experts of this rank. */
  readonly numLocalExperts: number
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /**
   * Whether padding rows and their scales are set to zero. Else they keep what was there; in new memory they are zero, in a graph or
   * a plan with every launch.
   * @default false
   */
  readonly zeroPadding?: boolean
  /** @default the device's default stream */
  readonly stream?: Stream
}

const rowDtypes: readonly DType[] = ['bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8']

/**
 * Checks rows, where they go, and the stream, which it gives; the scales are checked with their output.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function requireRoutedRows(
  x: Tensor,
  { topkIdx, numLocalExperts, expertMap, zeroPadding = false, stream }: RoutedRowsOptions,
): Stream {
  requireRows('x', x, rowDtypes)
  requireTopkIdx(topkIdx, x.shape[0]!, x.device)
  requireInteger('numLocalExperts', numLocalExperts, 1)
  requireExpertMap(expertMap, x.device)
  if (typeof zeroPadding !== 'boolean') throw argumentError('zeroPadding', 'a boolean', zeroPadding)
  if (stream === undefined) return x.device.defaultStream
  requireStream('stream', stream, x.device)
  return stream
}
