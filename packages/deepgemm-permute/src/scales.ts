import { argumentError, type Device, type DType, dtypes, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { roundUp } from './rounding.js'

/** Scales that travel with rows. */
export interface ScaleOptions {
  /**
   * [M, G]: f32 scales, u8 or e8m0 exponents, or i32 words of packed exponents, with any strides. Groups are just columns: 32,
   * 128, or any other number of elements may share a scale.
   */
  readonly scales?: Tensor
  /**
   * Whether exponents of one byte (u8, e8m0) become i32 words (packed UE8M0): byte j of word p is the exponent of group 4p + j,
   * groups that are not there are 0. @default false
   */
  readonly packScales?: boolean
  /**
   * How new scales lie. 'row': the columns of a row together. 'column': the rows of a column together, columns apart by the
   * number of rows rounded up to 16 bytes (4 rows of f32 or i32), as TMA reads them. Scales in `out` may have any strides.
   * @default 'row'
   */
  readonly scaleLayout?: 'row' | 'column'
}

const scaleDtypes: readonly DType[] = ['f32', 'i32', 'u8', 'e8m0']
const byteDtypes: readonly DType[] = ['u8', 'e8m0']

/**
 * The scales' output: `out` when given, else new memory; undefined without scales.
 * @param lead sizes before the columns: [rows], or [experts, rows].
 * @param place device that both must be on, and the stream that the operation is enqueued on.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function scalesFor(
  options: ScaleOptions,
  numTokens: number,
  lead: readonly number[],
  out: Tensor | undefined,
  place: { readonly device: Device; readonly stream: Stream },
): Tensor | undefined {
  const { scales, packScales = false, scaleLayout = 'row' } = options
  const { device } = place
  if (typeof packScales !== 'boolean') throw argumentError('packScales', 'a boolean', packScales)
  if (scaleLayout !== 'row' && scaleLayout !== 'column')
    throw argumentError('scaleLayout', "'row' or 'column'", scaleLayout)
  if (scales === undefined) {
    if (out !== undefined) throw argumentError('out.scales', 'nothing without scales', out)
    return undefined
  }
  const dtype = packScales ? byteDtypes : scaleDtypes
  requireTensor('scales', scales, { dtype, shape: [numTokens, null], contiguous: false, device })
  const columns = packScales ? Math.ceil(scales.shape[1]! / 4) : scales.shape[1]!
  const shape = [...lead, columns]
  const outDtype = packScales ? 'i32' : scales.dtype
  if (out === undefined) {
    return scaleLayout === 'row' ? Tensor.empty(shape, outDtype, device) : columnMajor(shape, outDtype, place)
  }
  requireTensor('out.scales', out, { dtype: outDtype, shape, contiguous: false, device })
  requireApart('out.scales', out)
  return out
}

/** A new tensor [..., rows, columns] whose last two dimensions lie column by column. */
function columnMajor(
  shape: readonly number[],
  dtype: DType,
  { device, stream }: { readonly device: Device; readonly stream: Stream },
): Tensor {
  const [rows, columns] = shape.slice(-2) as [number, number]
  const bytes = dtypes[dtype].bits / 8
  const columnStride = roundUp(rows, 16 / bytes)
  const matrix = columnStride * columns
  const batches = shape.length === 2 ? 1 : shape[0]!
  // Nobody writes the gaps between columns; whoever copies whole columns reads them.
  const memory = device.allocate(batches * matrix * bytes, { zeroed: columnStride !== rows, stream })
  const strides = [1, columnStride]
  return new Tensor({ memory, dtype, shape, strides: shape.length === 2 ? strides : [matrix, ...strides] })
}

/** @throws ERR_MOE_EP_ARGUMENT when elements of a tensor may share memory: which one is written last would be left to chance. */
function requireApart(argument: string, tensor: Tensor): void {
  const dimensions = tensor.shape
    .map((size, d) => ({ size, stride: tensor.strides[d]! }))
    .filter(({ size }) => size > 1)
    .sort((a, b) => a.stride - b.stride)
  let extent = 1
  for (const { size, stride } of dimensions) {
    if (stride < extent) {
      throw argumentError(argument, 'elements that lie apart', `${tensor} with strides [${tensor.strides.join(', ')}]`)
    }
    extent = stride * (size - 1) + extent
  }
}
