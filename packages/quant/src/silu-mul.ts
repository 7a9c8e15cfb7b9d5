import { requireTensor, type Stream, type Tensor, traceOperation } from '@moe-ep/core'
import { type GatedOptions, newRows, requireGatedInput } from './gated-input.js'
import { requireDisjoint } from './groups.js'
import { native } from './native.js'

export interface SiluMulOptions extends GatedOptions {
  /** @default the device's default stream */
  readonly stream?: Stream
  /** Where to write, instead of a new tensor: the shape of the result and the dtype of `x`. Must not overlap the inputs. */
  readonly out?: Tensor
}

/**
 * Gives silu(gate) * up for rows of H gates followed by H ups. The work is enqueued.
 *
 * silu(g) = g / (1 + exp(-g)) in f32, each operation rounded, with core's `expF32`; it is rounded to the dtype of `x`, multiplied by
 * up, and rounded again. NaN stays NaN and is canonical; a gate of minus infinity gives NaN.
 *
 * @param x bf16, f16 or f32 [M, 2H] or [E, T, 2H], contiguous; H is 1 or more.
 * @returns [M, H] or [E, T, H] of the dtype of `x`: `out` where given. Rows past `counts` are zero in a new tensor.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function siluMul(x: Tensor, options: SiluMulOptions = {}): Tensor {
  const { outputShape, limit } = requireGatedInput(x, options)
  const { counts, stream = x.device.defaultStream } = options
  if (options.out !== undefined) {
    requireTensor('out', options.out, { dtype: x.dtype, shape: outputShape, device: x.device })
    requireDisjoint({ x, out: options.out, ...(counts === undefined ? {} : { counts }) })
  }
  const out = options.out ?? newRows(outputShape, x, x.dtype, counts !== undefined, stream)
  traceOperation('quant.siluMul', stream, x.byteLength + out.byteLength, () =>
    native().siluMul(stream.handle, x.handle, out.handle, counts?.handle ?? null, limit),
  )
  return out
}
