import { type Device, type DType, requireTensor, type Stream, Tensor } from '@moe-ep/core'

/**
 * The caller's tensor for a result, checked, or a new one for the operation to write.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function outTensor(
  argument: string,
  out: Tensor | undefined,
  shape: readonly number[],
  { dtype, device }: { readonly dtype: DType; readonly device: Device },
): Tensor {
  if (out === undefined) return Tensor.empty(shape, dtype, device)
  requireTensor(argument, out, { dtype, shape, device })
  return out
}

/**
 * Whether an operation has to zero what it does not write otherwise, for a result in new memory. The cpu's is zero from the start, until
 * a graph or a plan has run once; a cuda device's is anything, and zeroing all of it first would take longer.
 */
export function mustZero(out: Tensor | undefined, stream: Stream): boolean {
  return out === undefined && (stream.device.kind === 'cuda' || stream.recording)
}
