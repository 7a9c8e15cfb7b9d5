import { argumentError, type Device, type DType, requireAligned, requireTensor, Tensor } from '@moe-ep/core'
import { defaultGroupSize, mxGroupSize, numGroupsOf, nvfp4GroupSize } from '@moe-ep/quant'
import type { PackedRows, RowSources } from './call-types.js'
import type { RowFormat } from './row-format.js'

/** Shape and format of what a rank receives. */
export interface PackedShape {
  /** Local experts; rank-major, ranks. */
  readonly numGroups: number
  /** Rows that each of them has room for. */
  readonly rows: number
  readonly hidden: number
  readonly format: RowFormat
}

const valueDTypes = { bf16: 'bf16', fp8: 'fp8e4m3', mxfp8: 'fp8e4m3', nvfp4: 'fp4e2m1' } as const

/** New tensors, and what the caller gave instead of them. @throws ERR_MOE_EP_ARGUMENT. */
export function packedRows(shape: PackedShape, out: Partial<PackedRows>, device: Device): PackedRows {
  const { numGroups, rows, hidden, format } = shape
  const dtype = valueDTypes[format.name]
  const recvShape = [numGroups, rows, hidden]
  const packedRecvX = out.packedRecvX ?? Tensor.empty(recvShape, dtype, device)
  requireTensor('out.packedRecvX', packedRecvX, { dtype, shape: recvShape, device })
  requireAligned('out.packedRecvX', packedRecvX)
  const packedRecvCount = out.packedRecvCount ?? Tensor.empty([numGroups], 'i32', device)
  requireTensor('out.packedRecvCount', packedRecvCount, { dtype: 'i32', shape: [numGroups], device })
  return { packedRecvX, packedRecvXScales: scalesOf(shape, out.packedRecvXScales, device), packedRecvCount }
}

function scalesOf(shape: PackedShape, given: Tensor | undefined, device: Device): Tensor | undefined {
  const { numGroups, rows, hidden, format } = shape
  switch (format.name) {
    case 'bf16':
      if (given !== undefined) throw argumentError('out.packedRecvXScales', 'nothing where rows travel as bf16', given)
      return undefined
    case 'fp8':
      return columnMajorScales(shape, given, device)
    case 'mxfp8':
      return rowMajorScales('e8m0', [numGroups, rows, numGroupsOf(hidden, mxGroupSize)], given, device)
    case 'nvfp4':
      return rowMajorScales('fp8e4m3', [numGroups, rows, numGroupsOf(hidden, nvfp4GroupSize)], given, device)
  }
}

/** What grouped GEMMs in fp8 read: a column's scales lie next to each other. */
function columnMajorScales(shape: PackedShape, given: Tensor | undefined, device: Device): Tensor {
  const { numGroups, rows, hidden, format } = shape
  const groups = numGroupsOf(hidden, defaultGroupSize)
  const [dtype, columns] = format.packedScales ? (['i32', Math.ceil(groups / 4)] as const) : (['f32', groups] as const)
  const scalesShape = [numGroups, rows, columns]
  const strides = [columns * rows, 1, rows]
  if (given === undefined) {
    const { memory, byteOffset } = Tensor.empty([numGroups, columns, rows], dtype, device)
    return new Tensor({ memory, dtype, shape: scalesShape, strides, byteOffset })
  }
  requireTensor('out.packedRecvXScales', given, { dtype, shape: scalesShape, device, contiguous: false })
  if (given.shape.some((size, d) => size > 1 && given.strides[d] !== strides[d]))
    throw argumentError('out.packedRecvXScales', `column-major, strides [${strides.join(', ')}]`, `${given}`)
  return given
}

/** What quant's operations of small groups read. */
function rowMajorScales(
  dtype: 'e8m0' | 'fp8e4m3',
  shape: readonly number[],
  given: Tensor | undefined,
  device: Device,
): Tensor {
  if (given === undefined) return Tensor.empty(shape, dtype, device)
  requireTensor('out.packedRecvXScales', given, { dtype, shape, device })
  return given
}

/** What is told of where rows come from. */
export interface SourcesShape {
  readonly numGroups: number
  readonly rows: number
  readonly numRanks: number
  readonly rankMajor: boolean
  readonly topk: number
  readonly weighted: boolean
}

/** New tensors, and what the caller gave instead of them. @throws ERR_MOE_EP_ARGUMENT. */
export function rowSources(shape: SourcesShape, out: Partial<RowSources>, device: Device): RowSources {
  const { numGroups, rows, numRanks, rankMajor, topk, weighted } = shape
  const tensorOf = (name: keyof RowSources, dtype: DType, of: readonly number[]): Tensor => {
    const tensor = out[name] ?? Tensor.empty(of, dtype, device)
    requireTensor(`out.${name}`, tensor, { dtype, shape: of, device })
    return tensor
  }
  const none = (name: keyof RowSources, where: string): undefined => {
    if (out[name] !== undefined) throw argumentError(`out.${name}`, `nothing ${where}`, out[name])
  }
  const routing = [numGroups, rows, topk]
  return {
    srcInfo: tensorOf('srcInfo', 'i32', [numGroups, rows]),
    layoutRange: rankMajor ? none('layoutRange', 'rank-major') : tensorOf('layoutRange', 'i64', [numGroups, numRanks]),
    recvTopkIdx: rankMajor ? tensorOf('recvTopkIdx', 'i32', routing) : none('recvTopkIdx', 'expert-major'),
    recvTopkWeights:
      rankMajor && weighted
        ? tensorOf('recvTopkWeights', 'f32', routing)
        : none('recvTopkWeights', 'unless rank-major with weights'),
  }
}
