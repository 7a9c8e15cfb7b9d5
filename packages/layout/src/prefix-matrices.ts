import { argumentError, requireInteger, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { native } from './native.js'

/**
 * Where the rows of each source begin on each destination: `out[i][j]` counts the tokens that ranks 0 to i send to rank j.
 *
 * @param numTokensPerRank i32 [R, R]: row i is rank i's own count for every destination.
 * @returns i32 [R, R], enqueued.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function getRankPrefixMatrix(numTokensPerRank: Tensor, options: { readonly stream?: Stream } = {}): Tensor {
  requireTensor('numTokensPerRank', numTokensPerRank, { dtype: 'i32', shape: [null, null] })
  const [rows, columns] = numTokensPerRank.shape
  if (rows !== columns || rows === 0)
    throw argumentError('numTokensPerRank', 'a square matrix', numTokensPerRank.toString())
  const { stream = numTokensPerRank.device.defaultStream } = options
  const out = Tensor.empty(numTokensPerRank.shape, 'i32', numTokensPerRank.device)
  traceOperation('layout.getRankPrefixMatrix', stream, 2 * out.byteLength, () =>
    native().getRankPrefixMatrix(stream.handle, numTokensPerRank.handle, out.handle),
  )
  return out
}

/**
 * Where the rows of each channel end: `out[r][c]` counts the tokens of channels 0 to c that go to rank r. Channel c is the
 * tokens [c * n, (c + 1) * n) with n = ceil(T / numChannels), cut at T.
 *
 * @param isTokenInRank bool [T, R].
 * @returns i32 [R, numChannels], enqueued.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function getChannelPrefixMatrix(
  isTokenInRank: Tensor,
  options: { readonly numChannels?: number; readonly stream?: Stream } = {},
): Tensor {
  requireTensor('isTokenInRank', isTokenInRank, { dtype: 'bool', shape: [null, null] })
  const { numChannels = defaultNumChannels, stream = isTokenInRank.device.defaultStream } = options
  requireInteger('numChannels', numChannels, 1)
  const out = Tensor.empty([isTokenInRank.shape[1]!, numChannels], 'i32', isTokenInRank.device)
  traceOperation('layout.getChannelPrefixMatrix', stream, isTokenInRank.byteLength + out.byteLength, () =>
    native().getChannelPrefixMatrix(stream.handle, isTokenInRank.handle, out.handle),
  )
  return out
}

/** Channels when none are asked for: a channel is a logical slice of tokens, whatever runs it. */
export const defaultNumChannels = 10
