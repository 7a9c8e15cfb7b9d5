import { argumentError, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { requireTopkIdx } from '../checks.js'
import { computeAlignedM } from '../compute-aligned-m.js'
import { permute } from '../permute.js'
import type { ScaleOptions } from '../scales.js'
import { deepGemmBlockShape } from './deep-gemm-block-shape.js'

/** Rows of each local expert, as a dispatch tells them. */
export interface ExpertTokensMetadata {
  /** i32 [numLocalExperts] on the device. */
  readonly expertNumTokens: Tensor
  /** The same on the host: the number of rows is then exact, not a bound. */
  readonly expertNumTokensCpu?: Int32Array
}

export interface DeepgemmMoePermuteOptions extends Pick<ScaleOptions, 'scaleLayout'> {
  /** [M, H] of bf16, f16, f32, fp8e4m3, fp8e5m2 or u8. */
  readonly aq: Tensor
  /** [M, G] scales of `aq`: f32, or with `packUe8m0` exponents of one byte. */
  readonly aqScale: Tensor
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly topkIds: Tensor
  /** Experts of this rank. */
  readonly localNumExperts: number
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /** Without it the slots are counted. */
  readonly expertTokensMeta?: ExpertTokensMetadata
  /** Dtype of `aq`, exactly [rows, H] with the rows of `computeAlignedM`. */
  readonly aqOut?: Tensor
  /** Whether exponents are packed four to an i32 word. @default false */
  readonly packUe8m0?: boolean
  /** Every expert's rows start on a multiple of it. @default deepGemmBlockShape()[0] */
  readonly alignment?: number
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** Rows in the contiguous layout, by their older names. */
export interface DeepgemmMoePermuted {
  /** Dtype of `aq`, [rows, H]. */
  readonly aqOut: Tensor
  /** [rows, G], or i32 [rows, ceil(G / 4)] when packed. */
  readonly aqScaleOut: Tensor
  /** i32 [rows]: each expert's id over whole tiles; 0 behind the last tile. */
  readonly expertIds: Tensor
  /** i32 [M, K]: row of each slot, -1 for slots without a local expert. */
  readonly invPerm: Tensor
}

/**
 * Copies every token's row and scales once for each of its local experts, grouped by expert: `permute` under its older name,
 * with ids over whole tiles.
 *
 * @throws ERR_MOE_EP_ARGUMENT and ERR_MOE_EP_CAPACITY as `permute` does, and for an `aqOut` of another shape.
 */
export function deepgemmMoePermute(options: DeepgemmMoePermuteOptions): DeepgemmMoePermuted {
  const { aq, aqOut, topkIds, localNumExperts, expertMap, expertTokensMeta: meta, stream } = options
  const { alignment = deepGemmBlockShape()[0], packUe8m0 = false, scaleLayout = 'row' } = options
  requireTensor('aq', aq, { shape: [null, null], contiguous: false })
  requireTopkIdx(topkIds, aq.shape[0]!, aq.device, 'topkIds')
  requireTensor('aqScale', options.aqScale, { contiguous: false, device: aq.device })
  const hostCounts = meta?.expertNumTokensCpu
  const numRows = computeAlignedM({
    numTokens: topkIds.shape[0]!,
    topk: topkIds.shape[1]!,
    numLocalExperts: localNumExperts,
    alignment,
    ...(hostCounts && { expertNumTokens: hostCounts }),
  })
  const shape = [numRows, aq.shape[1]!]
  if (aqOut !== undefined) requireTensor('aqOut', aqOut, { dtype: aq.dtype, shape })
  // For no tokens `permute` alone would make no rows.
  const rowsOfNoTokens = (): Tensor => Tensor.zeros(shape, aq.dtype, aq.device, { ...(stream && { stream }) })
  const out = aqOut ?? (aq.shape[0] === 0 ? rowsOfNoTokens() : undefined)
  const permuted = permute(aq, {
    ...{ scales: options.aqScale, packScales: packUe8m0, scaleLayout },
    ...{ topkIdx: topkIds, numLocalExperts: localNumExperts, alignment, fill: 'expert' },
    ...(expertMap && { expertMap }),
    ...(meta && { expertNumTokens: meta.expertNumTokens }),
    ...(hostCounts && { expertNumTokensHost: hostCounts }),
    ...(out && { out: { rows: out } }),
    ...(stream && { stream }),
  })
  const { rows, scales, expertIds, inversePermutation } = permuted
  if (scales === undefined) throw argumentError('aqScale', 'a Tensor', options.aqScale)
  return { aqOut: rows, aqScaleOut: scales, expertIds, invPerm: inversePermutation }
}
