import { argumentError, type Device, requireTensor, Tensor } from '@moe-ep/core'
import { defaultGroupSize, numGroupsOf } from '@moe-ep/quant'
import type { PackedRows } from './call-types.js'

/** Shape and format of what a rank receives. */
export interface PackedShape {
  /** Local experts; rank-major, ranks. */
  readonly numGroups: number
  /** Rows that each of them has room for. */
  readonly rows: number
  readonly hidden: number
  readonly format: 'bf16' | 'fp8' | 'fp8-ue8m0'
}

/** GPUs move rows in pieces of 16 bytes, from and to addresses that are multiples of that. @throws ERR_MOE_EP_ARGUMENT. */
export function requireAligned(argument: string, rows: Tensor): void {
  if (rows.device.kind === 'cuda' && rows.pointer % 16n !== 0n)
    throw argumentError(argument, 'an address that is a multiple of 16', `0x${rows.pointer.toString(16)} (${rows})`)
}

/** New tensors, and what the caller gave instead of them. @throws ERR_MOE_EP_ARGUMENT. */
export function packedRows(shape: PackedShape, out: Partial<PackedRows>, device: Device): PackedRows {
  const { numGroups, rows, hidden, format } = shape
  const dtype = format === 'bf16' ? 'bf16' : 'fp8e4m3'
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
  if (format === 'bf16') {
    if (given !== undefined) throw argumentError('out.packedRecvXScales', 'nothing where rows travel as bf16', given)
    return undefined
  }
  const groups = numGroupsOf(hidden, defaultGroupSize)
  const [dtype, columns] = format === 'fp8' ? (['f32', groups] as const) : (['i32', Math.ceil(groups / 4)] as const)
  const scalesShape = [numGroups, rows, columns]
  // A column's scales lie next to each other: what grouped GEMMs read.
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
