import { argumentError, MoeEpError, requireInteger, requireTensor, Tensor, traceOperation } from '@moe-ep/core'
import { maxRows, requireOutDisjoint } from './checks.js'
import { computeAlignedM, defaultAlignment } from './compute-aligned-m.js'
import { native, type PermuteSettings } from './native.js'
import { mustZero, outTensor } from './out-tensor.js'
import { requireHostCounts } from './rounding.js'
import { requireRoutedRows, type RoutedRowsOptions } from './routed-rows.js'
import { scalesFor } from './scales.js'

/**
 * Memory for results of `permute`. All that have rows of the layout must have equally many: that is the capacity. The result of
 * an earlier call will do; what is not named here is new in every result.
 */
export interface PermuteOut {
  /** Dtype of x, [capacity, H]. */
  readonly rows?: Tensor
  /** [capacity, columns], dtype and columns as `scales` and `packScales` say. Any strides. */
  readonly scales?: Tensor | undefined
  /** i32 [capacity]. */
  readonly expertIds?: Tensor
  /** i32 [M, K]. */
  readonly inversePermutation?: Tensor
  /** i32 [numLocalExperts]. */
  readonly expertEnd?: Tensor
}

export interface PermuteOptions extends RoutedRowsOptions {
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
   * Ids of padding rows: -1, or, for GEMMs that take no negative id, that of the expert whose rows they follow. Rows after the
   * last expert's tiles then become 0 ('expert') or keep what was there ('tile'). @default -1
   */
  readonly fill?: -1 | 'expert' | 'tile'
  /** Where results go; those that are absent are allocated. Must not overlap the inputs. */
  readonly out?: PermuteOut
}

/** Rows in the contiguous layout of grouped GEMMs. */
export interface Permuted {
  /** Dtype of x, [rows, H]: the rows of expert 0, padding, the rows of expert 1, padding, ... */
  readonly rows: Tensor
  /** [rows, G] of the dtype of the scales, or i32 [rows, ceil(G / 4)] when packed; undefined without scales. */
  readonly scales: Tensor | undefined
  /** i32 [rows]: local expert of each row (`m_indices`); padding as `fill` says. */
  readonly expertIds: Tensor
  /** i32 [M, K]: row that each slot went to, -1 for slots without a local expert. */
  readonly inversePermutation: Tensor
  /** i64 [numLocalExperts]: first row of each expert, a multiple of `alignment`. */
  readonly expertStart: Tensor
  /** i32 [numLocalExperts]: the row after each expert's last one, before its padding. */
  readonly expertEnd: Tensor
  /** i32 [numLocalExperts]: slots of each expert, as counted. */
  readonly expertNumTokens: Tensor
}

const idsOfFill: Readonly<Record<string, Pick<PermuteSettings, 'idInside' | 'idBehind'>>> = {
  '-1': { idInside: -1, idBehind: -1 },
  expert: { idInside: undefined, idBehind: 0 },
  tile: { idInside: undefined, idBehind: undefined },
}

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
  const stream = requireRoutedRows(x, options)
  const { topkIdx, numLocalExperts, alignment = defaultAlignment, fill = -1, zeroPadding = false, out = {} } = options
  const { expertNumTokensHost: hostCounts, scales } = options
  const [numTokens, hidden] = x.shape as [number, number]
  requireInteger('alignment', alignment, 1, maxRows)
  if (fill !== -1 && fill !== 'expert' && fill !== 'tile') throw argumentError('fill', "-1, 'expert' or 'tile'", fill)
  const topk = topkIdx.shape[1]!
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
  const i32 = { dtype: 'i32', device } as const
  const expertStart = Tensor.empty([numLocalExperts + 1], 'i64', device)
  const result: Permuted = {
    rows: outTensor('out.rows', out.rows, [capacity, hidden], x),
    scales: scalesFor(options, numTokens, [capacity], out.scales, { device, stream }),
    expertIds: outTensor('out.expertIds', out.expertIds, [capacity], i32),
    inversePermutation: outTensor('out.inversePermutation', out.inversePermutation, [numTokens, topk], i32),
    expertStart: expertStart.slice(0, numLocalExperts),
    expertEnd: outTensor('out.expertEnd', out.expertEnd, [numLocalExperts], i32),
    expertNumTokens: Tensor.empty([numLocalExperts], 'i32', device),
  }
  const { expertMap, expertNumTokens } = options
  requireOutDisjoint(out, result, { x, topkIdx, scales: options.scales, expertMap, expertNumTokens })
  traceOperation('deepgemm-permute.permute', stream, movedBytes(x, result, hostCounts), () =>
    native().permute(
      stream.handle,
      x.handle,
      scales?.handle,
      topkIdx.handle,
      options.expertMap?.handle,
      reserved?.handle,
      result.rows.handle,
      result.scales?.handle,
      result.expertIds.handle,
      result.inversePermutation.handle,
      expertStart.handle,
      result.expertEnd.handle,
      result.expertNumTokens.handle,
      {
        ...{ alignment, rowsPerExpert: 0, foreignLast: false },
        ...idsOfFill[fill === 'tile' && mustZero(out.expertIds, stream) ? 'expert' : fill]!,
        zeroRows: zeroPadding || mustZero(out.rows, stream),
        zeroScales: zeroPadding || mustZero(out.scales, stream),
      },
    ),
  )
  return result
}

/** Rows to keep for each expert, where the caller says so. Host counts are copied: the caller may change them at once. */
function reservedRows(options: PermuteOptions): Tensor | undefined {
  const { expertNumTokens, expertNumTokensHost, numLocalExperts } = options
  const { device } = options.topkIdx
  if (expertNumTokensHost !== undefined) requireHostCounts('expertNumTokensHost', expertNumTokensHost, numLocalExperts)
  if (expertNumTokens !== undefined) {
    requireTensor('expertNumTokens', expertNumTokens, { dtype: 'i32', shape: [numLocalExperts], device })
    return expertNumTokens
  }
  return expertNumTokensHost && Tensor.copyOf(expertNumTokensHost, [numLocalExperts], 'i32', device)
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

/** Bytes read and written, where the host knows how many rows there are. */
function movedBytes(x: Tensor, result: Permuted, hostCounts: Int32Array | undefined): number | undefined {
  if (hostCounts === undefined) return undefined
  const rows = hostCounts.reduce((sum, count) => sum + count, 0)
  const capacity = Math.max(1, result.rows.shape[0]!)
  return x.byteLength + (rows / capacity) * (result.rows.byteLength + (result.scales?.byteLength ?? 0))
}
