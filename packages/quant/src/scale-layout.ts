import { argumentError, contiguousStrides, type Device, dtypes, requireTensor, type Stream, Tensor } from '@moe-ep/core'
import { zeroInReplays } from './zero-in-replays.js'

/**
 * What a scale tensor holds: `'f32'` any number; `'ue8m0'` f32 powers of two; `'ue8m0-packed'` the exponent bytes of such
 * powers, four to an i32: byte j of word p (lowest first) is that of group 4p + j, and bytes past the last group are 0.
 */
export type ScaleFormat = 'f32' | 'ue8m0' | 'ue8m0-packed'

/**
 * Where scale [m, g] of a tensor [M, G] lies, in elements: `'row-major'` m * G + g; `'column-major'` g * M + m;
 * `'column-major-tma'` g * roundup(M, 4) + m, so that each column begins at a multiple of 16 bytes. The shape stays [M, G].
 */
export type ScaleLayout = 'row-major' | 'column-major' | 'column-major-tma'

const formats: readonly ScaleFormat[] = ['f32', 'ue8m0', 'ue8m0-packed']
const layouts: readonly ScaleLayout[] = ['row-major', 'column-major', 'column-major-tma']

/** A scale tensor's description: `batch` matrices (absent: one, and no dimension for it) of `rows` times `groups`. */
export interface ScaleShape {
  readonly batch?: number
  readonly rows: number
  readonly groups: number
  readonly format: ScaleFormat
  readonly layout: ScaleLayout
}

/** The layout that goes with a format when nothing else is asked for: packed scales are what grouped GEMMs read. */
export function defaultLayoutOf(format: ScaleFormat): ScaleLayout {
  return format === 'ue8m0-packed' ? 'column-major-tma' : 'row-major'
}

/** @throws ERR_MOE_EP_ARGUMENT for names that are none. */
export function requireScaleKind(format: ScaleFormat, layout: ScaleLayout): void {
  if (!formats.includes(format)) throw argumentError('scaleFormat', formats.join(' or '), format)
  if (!layouts.includes(layout)) throw argumentError('scaleLayout', layouts.join(' or '), layout)
}

/** dtype, shape, strides and the elements that a new tensor takes. */
function describe(scales: ScaleShape): {
  readonly dtype: 'f32' | 'i32'
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly elements: number
} {
  const { batch, rows, groups, format, layout } = scales
  const packed = format === 'ue8m0-packed'
  const columns = packed ? Math.ceil(groups / 4) : groups
  const shape = batch === undefined ? [rows, columns] : [batch, rows, columns]
  const dtype = packed ? 'i32' : 'f32'
  const columnStride = layout === 'column-major-tma' ? Math.ceil(rows / 4) * 4 : rows
  const elements = (batch ?? 1) * columns * columnStride
  if (layout === 'row-major') return { dtype, shape, strides: contiguousStrides(shape), elements }
  const strides = [...(batch === undefined ? [] : [columns * columnStride]), 1, columnStride]
  return { dtype, shape, strides, elements }
}

/** A new scale tensor on the device of `stream`; what no scale is `written` to, gaps between columns included, is zero. */
export function allocateScales(scales: ScaleShape, stream: Stream, written: boolean): Tensor {
  const { dtype, shape, strides, elements } = describe(scales)
  const zeroed = !written || elements !== shape.reduce((all, size) => all * size, 1)
  const memory = stream.device.allocate(elements * (dtypes[dtype].bits / 8), { zeroed, stream })
  if (!written) zeroInReplays(memory, stream)
  return new Tensor({ memory, dtype, shape, strides })
}

/** @throws ERR_MOE_EP_ARGUMENT when `value` is no tensor of this description. */
export function requireScales(argument: string, value: Tensor, scales: ScaleShape, device: Device): void {
  requireTensor(argument, value, { contiguous: false, device })
  const { dtype, shape, strides } = describe(scales)
  const expected = `${dtype} [${shape.join(', ')}] with strides [${strides.join(', ')}]`
  const fits =
    value?.dtype === dtype &&
    value.shape.length === shape.length &&
    shape.every((size, d) => value.shape[d] === size && (size <= 1 || value.strides[d] === strides[d]))
  if (!fits)
    throw argumentError(argument, expected, value?.strides ? `${value}, strides [${value.strides.join(', ')}]` : value)
}

/**
 * Groups of a row that scales to read are for: f32 [M, G], or packed i32 [M, ceil(G / 4)], with any strides.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function requireReadableScales(
  argument: string,
  value: Tensor,
  rows: number,
  groups: number,
  device: Device,
): void {
  requireTensor(argument, value, { contiguous: false, device })
  const columns = value?.dtype === 'i32' ? Math.ceil(groups / 4) : groups
  const fits = (value?.dtype === 'f32' || value?.dtype === 'i32') && value.shape.length === 2
  if (!fits || value.shape[0] !== rows || value.shape[1] !== columns) {
    throw argumentError(argument, `f32 [${rows}, ${groups}] or i32 [${rows}, ${Math.ceil(groups / 4)}]`, `${value}`)
  }
}
