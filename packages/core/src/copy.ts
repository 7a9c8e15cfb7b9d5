import { argumentError } from './error.js'
import { native } from './native.js'
import type { Stream } from './stream.js'
import { requireTensor } from './tensor-checks.js'
import type { Tensor } from './tensor.js'
import { traceOperation } from './tracing.js'

/**
 * Enqueues a copy of all elements of `from` to `to`: contiguous tensors of one dtype and as many elements. Each lies on the stream's device
 * or on the cpu. Nothing is read or written before the stream gets there, host memory included.
 * @param options.stream of the cuda device when one of the two lies there. @default the default stream of that device
 * @throws ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED.
 */
export function copyTensor(from: Tensor, to: Tensor, options: { readonly stream?: Stream } = {}): void {
  requireTensor('from', from)
  requireTensor('to', to, { dtype: from.dtype })
  if (from.numel !== to.numel) throw argumentError('to', `${from.numel} elements`, to.toString())
  const device = from.device.kind === 'cpu' ? to.device : from.device
  const { stream = device.defaultStream } = options
  for (const [name, tensor] of Object.entries({ from, to })) {
    if (tensor.device.kind !== 'cpu' && tensor.device !== stream.device) {
      throw argumentError(name, `a tensor on ${stream.device} or the cpu`, tensor.toString())
    }
  }
  traceOperation('core.copyTensor', stream, 2 * from.byteLength, () =>
    native().copy(stream.handle, from.handle, to.handle),
  )
}
