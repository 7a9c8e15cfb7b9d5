import { argumentError, type Stream, Tensor } from '@moe-ep/core'
import { permute } from '@moe-ep/deepgemm-permute'

/**
 * Copies a tensor's bytes into another of the same dtype and shape, in stream order.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function copyRows(from: Tensor, to: Tensor, stream: Stream): void {
  if (to.dtype !== from.dtype || `${to.shape}` !== `${from.shape}`)
    throw argumentError('output', from.toString(), to.toString())
  const rows = from.shape[0] ?? 0
  if (from.numel === 0) return
  const matrix = [rows, from.numel / rows]
  // A permutation with one expert that everybody goes to: bytes are moved, not computed with.
  permute(from.reshape(matrix), {
    ...{ topkIdx: Tensor.zeros([rows, 1], 'i32', from.device), numLocalExperts: 1, alignment: 1, stream },
    ...{ expertNumTokensHost: Int32Array.of(rows), out: { rows: to.reshape(matrix) } },
  })
}
