import { argumentError, requireTensor, type Stream, type Tensor } from '@moe-ep/core'
import { permute } from '../permute.js'
import { deepGemmBlockShape } from './deep-gemm-block-shape.js'

export interface EpScatterOptions {
  /** [M, H] of bf16, f16, f32, fp8e4m3, fp8e5m2 or u8. */
  readonly recvX: Tensor
  /** [M, G] scales of `recvX`: f32, or with `packUe8m0` exponents of one byte. */
  readonly recvXScale: Tensor
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly recvTopk: Tensor
  /** i32 [numLocalExperts]: rows of each expert, at least as many as its slots. */
  readonly numRecvTokensPerExpert: Tensor
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /** i32 [numLocalExperts], written: the first row of each expert plus its slots, as both phases leave it. */
  readonly expertStartLoc: Tensor
  /** Dtype of `recvX`, [rows, H], written. */
  readonly outputTensor: Tensor
  /** [rows, G], or i32 [rows, ceil(G / 4)] when packed; written. Any strides: column-major too. */
  readonly outputTensorScale: Tensor
  /** i32 [rows], written: each expert's id over whole tiles of `blockE` rows. Rows behind the last tile keep what they hold. */
  readonly mIndices: Tensor
  /** i32 [M, K], written: row of each slot, -1 for slots without a local expert (the original leaves those alone). */
  readonly outputIndex: Tensor
  /** Whether exponents are packed four to an i32 word. @default false */
  readonly packUe8m0?: boolean
  /** Rows of a tile: every expert starts on a multiple of it. @default 128 */
  readonly blockE?: number
  /** Elements that share a scale. Without effect: scales are columns. */
  readonly blockD?: number
  /** Without effect: there are no warps to choose. */
  readonly numWarps?: number
  /** @default the device's default stream */
  readonly stream?: Stream
}

/**
 * Both phases of the scatter into the contiguous layout, into memory that the caller brings: `permute` under its older name.
 *
 * @throws ERR_MOE_EP_ARGUMENT and ERR_MOE_EP_CAPACITY as `permute` does.
 */
export function epScatter(options: EpScatterOptions): void {
  const { recvX, numRecvTokensPerExpert, mIndices, blockE = deepGemmBlockShape()[0], expertMap, stream } = options
  requireTensor('numRecvTokensPerExpert', numRecvTokensPerExpert, { dtype: 'i32', shape: [null] })
  requireTensor('mIndices', mIndices, { dtype: 'i32', shape: [null] })
  if (mIndices.numel % blockE !== 0) throw argumentError('mIndices', `a multiple of ${blockE} rows`, mIndices)
  permute(recvX, {
    scales: options.recvXScale,
    packScales: options.packUe8m0 ?? false,
    topkIdx: options.recvTopk,
    numLocalExperts: numRecvTokensPerExpert.numel,
    ...(expertMap && { expertMap }),
    expertNumTokens: numRecvTokensPerExpert,
    alignment: blockE,
    fill: 'tile',
    out: {
      rows: options.outputTensor,
      scales: options.outputTensorScale,
      expertIds: mIndices,
      inversePermutation: options.outputIndex,
      expertEnd: options.expertStartLoc,
    },
    ...(stream && { stream }),
  })
}
