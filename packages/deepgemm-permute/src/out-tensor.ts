import { type Device, type DType, requireTensor, Tensor } from '@moe-ep/core'

/**
 * The caller's tensor for a result, checked, or a new zeroed one.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function outTensor(
  argument: string,
  out: Tensor | undefined,
  shape: readonly number[],
  { dtype, device }: { readonly dtype: DType; readonly device: Device },
): Tensor {
  if (out === undefined) return Tensor.zeros(shape, dtype, device)
  requireTensor(argument, out, { dtype, shape })
  return out
}
