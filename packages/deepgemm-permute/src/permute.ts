import {
  argumentError,
  type DType,
  MoeEpError,
  requireInteger,
  requireTensor,
  type Stream,
  Tensor,
  traceOperation,
} from '@moe-ep/core'
import { maxRows, requireExpertMap, requireRows, requireTopkIdx } from './checks.js'
import { computeAlignedM, defaultAlignment, requireHostCounts } from './compute-aligned-m.js'
import { native } from './native.js'

/** Memory for results of `permute`. All that have rows of the layout must have equally many: that is the capacity. */
export interface PermuteOut {
  /** Dtype of x, [capacity, H]. */
  readonly rows?: Tensor
  /** f32 [capacity, G]. */
  readonly scales?: Tensor
  /** i32 [capacity]. */
  readonly expertIds?: Tensor
  /** i32 [M, K]. */
  readonly inversePermutation?: Tensor
}

export interface PermuteOptions {
  /** f32 [M, G]: scales that travel with the rows of x. Any row stride, columns together. */
  readonly scales?: Tensor
  /** i32 or i64 [M, K]: expert ids, -1 for "no expert". */
  readonly topkIdx: Tensor
  /** Experts of this rank. */
  readonly numLocalExperts: number
  /** i32 [E]: global to local id, -1 for foreign experts. Without it the ids are local. */
  readonly expertMap?: Tensor
  /**
   * i32 [numLocalExperts] on the device: rows to keep for each expert, at least as many as its slots. Without it they are
   * counted.
   */
  readonly expertNumTokens?: Tensor
  /** The same counts on the host: the number of rows is then exact, not a bound. */
  readonly expertNumTokensHost?: Int32Array
  /** Every expert's rows start on a multiple of it; any integer from 1. @default 128 */
  readonly alignment?: number
  /**
   * Ids of padding rows: -1, or 'expert' for the id of the expert whose rows they follow (0 for rows after the last
   * expert's), for GEMMs that take no negative id. @default -1
   */
  readonly fill?: -1 | 'expert'
  /** Whether padding rows and their scales are set to zero. Else they keep what was there; new memory is zero. @default false */
  readonly zeroPadding?: boolean
  /** Where results go; those that are absent are allocated. Must not overlap the inputs. */
  readonly out?: PermuteOut
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** Rows in the contiguous layout of grouped GEMMs. */
export interface Permuted {
  /** Dtype of x, [rows, H]: the rows of expert 0, padding, the rows of expert 1, padding, ... */
  readonly rows: Tensor
  /** f32 [rows, G]; undefined without scales. */
  readonly scales: Tensor | undefined
  /** i32 [rows]: local expert of each row (`m_indices`); padding as `fill` says. */
  readonly expertIds: Tensor
  /** i32 [M, K]: row that each slot went to, -1 for slots without a local expert. */
  readonly inversePermutation: Tensor
  /** i64 [numLocalExperts]: first row of each expert, a multiple of `alignment`. */
  readonly expertStart: Tensor
  /** i32 [numLocalExperts]: slots of each expert, as counted. */
  readonly expertNumTokens: Tensor
}

const rowDtypes: readonly DType[] = ['bf16', 'f16', 'f32', 'fp8e4m3', 'fp8e5m2', 'u8']

/**
 * Copies every token's row once for each of its local experts, grouped by expert: what a contiguous grouped GEMM reads.
 *
 * Rows inside an expert are ordered by token, then by slot; a token that names an expert twice gets two rows. Bytes are copied
 * as they are. With host counts there are exactly as many rows as needed, otherwise the bound of {@link computeAlignedM}
 * (none for no tokens), or as many as `out` has.
 *
 * @param x [M, H] of bf16, f16, f32, fp8e4m3, fp8e5m2 or u8. Any row stride, columns together.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id or a map entry out of
 * range, or a given count that is too small. ERR_MOE_EP_CAPACITY, with the rows needed, when `out` has too few: at once with
 * host counts, else at the next await. Nothing is written then.
 */
export function permute(x: Tensor, options: PermuteOptions): Permuted {
  requireRows('x', x, rowDtypes)
  const { topkIdx, numLocalExperts, alignment = defaultAlignment, fill = -1, zeroPadding = false, out = {} } = options
  const { expertMap, expertNumTokensHost: hostCounts, stream = x.device.defaultStream } = options
  const [numTokens, hidden] = x.shape as [number, number]
  requireTopkIdx(topkIdx, numTokens)
  requireInteger('numLocalExperts', numLocalExperts, 1)
  requireInteger('alignment', alignment, 1, maxRows)
  requireExpertMap(expertMap)
  if (fill !== -1 && fill !== 'expert') throw argumentError('fill', "-1 or 'expert'", fill)
  if (typeof zeroPadding !== 'boolean') throw argumentError('zeroPadding', 'a boolean', zeroPadding)
  const topk = topkIdx.shape[1]!
  const { scales } = options
  if (scales !== undefined) requireRows('scales', scales, 'f32', [numTokens, null])
  const reserved = reservedRows(options)
  const needed =
    numTokens === 0 && hostCounts === undefined
      ? 0
      : computeAlignedM({
          numTokens,
          topk,
          numLocalExperts,
          alignment,
          ...(hostCounts && { expertNumTokens: hostCounts }),
        })
  const capacity = capacityOf(out, needed, hostCounts !== undefined)
  const { device } = x
  const result: Permuted = {
    rows: given('out.rows', out.rows, [capacity, hidden], x.dtype) ?? Tensor.zeros([capacity, hidden], x.dtype, device),
    scales: scales && outScales(out.scales, capacity, scales),
    expertIds: given('out.expertIds', out.expertIds, [capacity], 'i32') ?? Tensor.zeros([capacity], 'i32', device),
    inversePermutation:
      given('out.inversePermutation', out.inversePermutation, [numTokens, topk], 'i32') ??
      Tensor.zeros([numTokens, topk], 'i32', device),
    expertStart: Tensor.zeros([numLocalExperts], 'i64', device),
    expertNumTokens: Tensor.zeros([numLocalExperts], 'i32', device),
  }
  traceOperation('deepgemm-permute.permute', stream, movedBytes(x, result, hostCounts), () =>
    native().permute(
      stream.handle,
      x.handle,
      scales?.handle,
      topkIdx.handle,
      expertMap?.handle,
      reserved?.handle,
      result.rows.handle,
      result.scales?.handle,
      result.expertIds.handle,
      result.inversePermutation.handle,
      result.expertStart.handle,
      result.expertNumTokens.handle,
      alignment,
      fill === 'expert',
      zeroPadding,
    ),
  )
  return result
}

/** Rows to keep for each expert, where the caller says so. Host counts are copied: the caller may change them at once. */
function reservedRows(options: PermuteOptions): Tensor | undefined {
  const { expertNumTokens, expertNumTokensHost, numLocalExperts, topkIdx } = options
  if (expertNumTokensHost !== undefined) requireHostCounts('expertNumTokensHost', expertNumTokensHost, numLocalExperts)
  if (expertNumTokens !== undefined) {
    requireTensor('expertNumTokens', expertNumTokens, { dtype: 'i32', shape: [numLocalExperts] })
    return expertNumTokens
  }
  return expertNumTokensHost && Tensor.from(expertNumTokensHost, [numLocalExperts], 'i32', topkIdx.device)
}

/** Rows of the outputs: those of `out`, which say it by their first dimension, else as many as needed. */
function capacityOf(out: PermuteOut, needed: number, exact: boolean): number {
  const capacity = out.rows?.shape[0] ?? out.scales?.shape[0] ?? out.expertIds?.shape[0] ?? needed
  if (exact && capacity < needed) {
    throw new MoeEpError('ERR_MOE_EP_CAPACITY', `out: it has ${capacity} rows, but ${needed} are needed`, {
      details: { argument: 'out', capacity, needed },
    })
  }
  if (capacity > maxRows) throw argumentError('topkIdx', `up to ${maxRows} rows in the layout`, `${capacity} rows`)
  return capacity
}

function outScales(out: Tensor | undefined, capacity: number, scales: Tensor): Tensor {
  const shape = [capacity, scales.shape[1]!]
  return given('out.scales', out, shape, 'f32') ?? Tensor.zeros(shape, 'f32', scales.device)
}

function given(argument: string, out: Tensor | undefined, shape: readonly number[], dtype: DType): Tensor | undefined {
  if (out !== undefined) requireTensor(argument, out, { dtype, shape })
  return out
}

/** Bytes read and written, where the host knows how many rows there are. */
function movedBytes(x: Tensor, result: Permuted, hostCounts: Int32Array | undefined): number | undefined {
  if (hostCounts === undefined) return undefined
  const rows = hostCounts.reduce((sum, count) => sum + count, 0)
  const capacity = Math.max(1, result.rows.shape[0]!)
  return x.byteLength + (rows / capacity) * (result.rows.byteLength + (result.scales?.byteLength ?? 0))
}
