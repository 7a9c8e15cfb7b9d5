import { requireInteger, requireTensor, type Stream, Tensor, traceOperation } from '@moe-ep/core'
import { native } from './native.js'

export interface DispatchLayoutOptions {
  /** Global number of experts E. */
  readonly numExperts: number
  /** Number of ranks R. */
  readonly numRanks: number
  /** Ranks of one node; give it when nodes talk over RDMA, and numTokensPerRdmaRank is counted. */
  readonly ranksPerNode?: number
  /** @default the device's default stream */
  readonly stream?: Stream
}

/** How the tokens of one rank spread over ranks and experts. */
export interface DispatchLayout {
  /** i32 [R]: tokens with at least one expert on the rank. */
  readonly numTokensPerRank: Tensor
  /** i32 [ceil(R / ranksPerNode)]: tokens with at least one expert on the node; undefined without ranksPerNode. */
  readonly numTokensPerRdmaRank: Tensor | undefined
  /** i32 [E]: selections of the expert; a duplicate in a row counts twice. */
  readonly numTokensPerExpert: Tensor
  /** bool [T, R]: whether the token has an expert on the rank. */
  readonly isTokenInRank: Tensor
}

/** Most slots a token may have. */
export const maxTopk = 32

/**
 * Counts where the tokens of this rank go. Experts are placed linearly (see {@link linearPlacement}); the work is enqueued.
 *
 * @param topkIdx i32 or i64 [T, K], K up to 32: global expert ids, -1 for "no expert". T may be 0.
 * @throws ERR_MOE_EP_ARGUMENT at once for shapes and dtypes; at the next await of the stream for an id out of range.
 */
export function getDispatchLayout(topkIdx: Tensor, options: DispatchLayoutOptions): DispatchLayout {
  requireTensor('topkIdx', topkIdx, { dtype: ['i32', 'i64'], shape: [null, null] })
  const { numExperts, numRanks, ranksPerNode, stream = topkIdx.device.defaultStream } = options
  const [numTokens, numTopk] = topkIdx.shape as [number, number]
  requireInteger('topk', numTopk, 1, maxTopk)
  requireInteger('numExperts', numExperts, 1)
  requireInteger('numRanks', numRanks, 1)
  if (ranksPerNode !== undefined) requireInteger('ranksPerNode', ranksPerNode, 1, numRanks)
  const { device } = topkIdx
  const nodes = ranksPerNode === undefined ? undefined : Math.ceil(numRanks / ranksPerNode)
  const layout: DispatchLayout = {
    numTokensPerRank: Tensor.empty([numRanks], 'i32', device),
    numTokensPerRdmaRank: nodes === undefined ? undefined : Tensor.empty([nodes], 'i32', device),
    numTokensPerExpert: Tensor.empty([numExperts], 'i32', device),
    isTokenInRank: Tensor.empty([numTokens, numRanks], 'bool', device),
  }
  traceOperation('layout.getDispatchLayout', stream, topkIdx.byteLength + layout.isTokenInRank.byteLength, () =>
    native().getDispatchLayout(
      stream.handle,
      topkIdx.handle,
      layout.numTokensPerRank.handle,
      layout.numTokensPerRdmaRank?.handle,
      layout.numTokensPerExpert.handle,
      layout.isTokenInRank.handle,
      ranksPerNode ?? 0,
    ),
  )
  return layout
}
