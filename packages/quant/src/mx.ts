import { argumentError, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { type DequantizedDType, dequantizedOutput } from './dequantized-output.js'
import { requireDisjoint, requireName } from './groups.js'
import { native } from './native.js'

/** Elements that share a scale in the MX formats. */
export const mxGroupSize = 32

/** Rules for e8m0 scales as the addon numbers them: MxScaleRule of moe_ep/quant/small_groups.h. */
const ruleCodes = { ocp: 0, ceil: 1, even: 2 } as const

/** A matrix in an MX format: element [m, h] stands for values[m, h] * 2^(scales[m, h / 32] - 127). */
export interface MxQuantized {
  /** fp8e4m3 or fp4e2m1 [M, H]. */
  readonly values: Tensor
  /** e8m0 [M, ceil(H / 32)]. */
  readonly scales: Tensor
}

/** Options of both MX quantisers. */
export interface QuantizeMxOptions<Rule> {
  /** @default 'ocp' */
  readonly scaleRule?: Rule
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of new tensors. Must not overlap `x` or each other. */
  readonly out?: MxQuantized
}

/** Options of both MX dequantisers. */
export interface DequantizeMxOptions {
  /** @default the dtype of `out`, else 'bf16' */
  readonly dtype?: DequantizedDType
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write [M, H], instead of a new tensor. Must not overlap the inputs. */
  readonly out?: Tensor
}

/** One of the two formats: what its operations are called, and the rules that it offers. */
interface MxFormat<Rule> {
  readonly operation: string
  readonly dtype: 'fp8e4m3' | 'fp4e2m1'
  readonly rules: readonly Rule[]
}

/** @throws ERR_MOE_EP_ARGUMENT unless rows have an element or more, and whole bytes. */
export function requireRows(argument: string, matrix: Tensor, packed: boolean): void {
  const hidden = matrix.shape[1]!
  if (hidden === 0) throw argumentError(argument, 'rows of 1 element or more', matrix.toString())
  if (packed && hidden % 2 !== 0) throw argumentError(argument, 'rows of an even number of elements', matrix.toString())
}

/** Checks and enqueues a quantisation to an MX format. */
export function quantizeMx<Rule extends keyof typeof ruleCodes>(
  format: MxFormat<Rule>,
  x: Tensor,
  options: QuantizeMxOptions<Rule>,
): MxQuantized {
  const { dtype } = format
  requireTensor('x', x, { dtype: ['bf16', 'f16', 'f32'], shape: [null, null] })
  requireRows('x', x, dtype === 'fp4e2m1')
  const { scaleRule = 'ocp' as Rule, stream = x.device.defaultStream, out } = options
  requireName('scaleRule', scaleRule, format.rules)
  const scaleShape = [x.shape[0]!, Math.ceil(x.shape[1]! / mxGroupSize)]
  if (out !== undefined) {
    requireTensor('out.values', out.values, { dtype, shape: x.shape, device: x.device })
    requireTensor('out.scales', out.scales, { dtype: 'e8m0', shape: scaleShape, device: x.device })
    requireDisjoint({ x, 'out.values': out.values, 'out.scales': out.scales })
  }
  const { values, scales } = out ?? {
    values: Tensor.empty(x.shape, dtype, x.device),
    scales: Tensor.empty(scaleShape, 'e8m0', x.device),
  }
  traceOperation(format.operation, stream, x.byteLength + values.byteLength + scales.byteLength, () =>
    native().quantizeMx(stream.handle, x.handle, values.handle, scales.handle, ruleCodes[scaleRule]),
  )
  return { values, scales }
}

/** Checks and enqueues a dequantisation from an MX format. */
export function dequantizeMx(
  format: Omit<MxFormat<never>, 'rules'>,
  values: Tensor,
  scales: Tensor,
  options: DequantizeMxOptions,
): Tensor {
  requireTensor('values', values, { dtype: format.dtype, shape: [null, null] })
  requireRows('values', values, format.dtype === 'fp4e2m1')
  const [rows, hidden] = values.shape as [number, number]
  requireTensor('scales', scales, {
    dtype: 'e8m0',
    shape: [rows, Math.ceil(hidden / mxGroupSize)],
    device: values.device,
  })
  const { stream = values.device.defaultStream } = options
  const out = dequantizedOutput(options, values.shape, { values, scales })
  traceOperation(format.operation, stream, values.byteLength + scales.byteLength + out.byteLength, () =>
    native().dequantizeMx(stream.handle, values.handle, scales.handle, out.handle),
  )
  return out
}
