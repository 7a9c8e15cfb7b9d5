import { argumentError, requireTensor, Tensor } from '@moe-ep/core'
import { requireDisjoint } from './groups.js'

/** Element types that dequantised rows can have. */
export type DequantizedDType = 'f32' | 'f16' | 'bf16'

const dequantizedDTypes = ['f32', 'f16', 'bf16'] as const

/**
 * The tensor that a dequantisation writes: the caller's, checked, or a new one.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function dequantizedOutput(
  options: { readonly dtype?: DequantizedDType | undefined; readonly out?: Tensor | undefined },
  shape: readonly number[],
  inputs: Readonly<Record<string, Tensor>>,
): Tensor {
  const { out } = options
  const { device } = Object.values(inputs)[0]!
  if (out !== undefined) {
    requireTensor('out', out, { dtype: options.dtype ?? dequantizedDTypes, shape, device })
    for (const [name, input] of Object.entries(inputs)) requireDisjoint({ [name]: input, out })
  }
  const dtype = options.dtype ?? out?.dtype ?? 'bf16'
  if (!(dequantizedDTypes as readonly string[]).includes(dtype)) {
    throw argumentError('dtype', dequantizedDTypes.join(' or '), dtype)
  }
  return out ?? Tensor.empty(shape, dtype, device)
}
