/**
 * The same operations in plain TypeScript: the oracle. Slow, obvious, complete.
 */
import { linearPlacement } from './expert-placement.js'

/** Dispatch layout of one rank, as plain arrays (row-major where two-dimensional). */
export interface ReferenceDispatchLayout {
  readonly numTokensPerRank: Int32Array
  readonly numTokensPerRdmaRank: Int32Array | undefined
  readonly numTokensPerExpert: Int32Array
  readonly isTokenInRank: Uint8Array
}

/** What `getDispatchLayout` counts, from the definition: `topkIdx` is one array of expert ids for each token. */
export function getDispatchLayout(
  topkIdx: readonly (readonly number[])[],
  options: { readonly numExperts: number; readonly numRanks: number; readonly ranksPerNode?: number },
): ReferenceDispatchLayout {
  const { numExperts, numRanks, ranksPerNode } = options
  const placement = linearPlacement(numExperts, numRanks)
  const ranksOfToken = topkIdx.map((ids) => new Set(ids.filter((id) => id >= 0).map((id) => placement.rankOf(id))))
  const nodesOfToken = ranksOfToken.map(
    (ranks) => new Set([...ranks].map((rank) => Math.floor(rank / (ranksPerNode ?? 1)))),
  )
  const count = (length: number, contains: (token: number, index: number) => number): Int32Array =>
    Int32Array.from({ length }, (_, index) => topkIdx.reduce((sum, _ids, token) => sum + contains(token, index), 0))
  return {
    numTokensPerRank: count(numRanks, (token, rank) => Number(ranksOfToken[token]!.has(rank))),
    numTokensPerRdmaRank:
      ranksPerNode === undefined
        ? undefined
        : count(Math.ceil(numRanks / ranksPerNode), (token, node) => Number(nodesOfToken[token]!.has(node))),
    numTokensPerExpert: count(numExperts, (token, expert) => topkIdx[token]!.filter((id) => id === expert).length),
    isTokenInRank: Uint8Array.from({ length: topkIdx.length * numRanks }, (_, i) =>
      Number(ranksOfToken[Math.floor(i / numRanks)]!.has(i % numRanks)),
    ),
  }
}

/** `out[i][j]`: tokens that ranks 0 to i send to rank j. */
export function getRankPrefixMatrix(numTokensPerRank: readonly (readonly number[])[]): number[][] {
  return numTokensPerRank.map((row, i) =>
    row.map((_, j) => numTokensPerRank.slice(0, i + 1).reduce((sum, source) => sum + source[j]!, 0)),
  )
}

/** `out[r][c]`: tokens of channels 0 to c that go to rank r. */
export function getChannelPrefixMatrix(
  isTokenInRank: readonly (readonly boolean[])[],
  numRanks: number,
  numChannels: number,
): number[][] {
  const tokensPerChannel = Math.ceil(isTokenInRank.length / numChannels)
  return Array.from({ length: numRanks }, (_, rank) =>
    Array.from(
      { length: numChannels },
      (_, channel) => isTokenInRank.slice(0, (channel + 1) * tokensPerChannel).filter((inRank) => inRank[rank]).length,
    ),
  )
}
