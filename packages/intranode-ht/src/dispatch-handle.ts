import type { DType, Tensor } from '@moe-ep/core'
import type { Lease } from '@moe-ep/transport'

/**
 * The layout of a dispatch: who sends how many rows to whom, and where each row lies. It owns no rows and can be reused for later
 * dispatches of the same routing, on all ranks alike.
 *
 * R ranks, T tokens of this rank, C channels, L local experts. n[i][j] is the number of tokens that rank i sends to rank j; a
 * channel c of a rank is its tokens [c * ceil(T / C), (c + 1) * ceil(T / C)).
 */
export interface DispatchPlan {
  /** The rank that made it: a plan is of no use to another. */
  readonly rank: number
  /** Whether rows have one place for each selection (grouped dispatch) instead of one for each token. */
  readonly grouped: boolean
  readonly numTokens: number
  readonly numExperts: number
  readonly numChannels: number
  readonly expertAlignment: number
  /** i32 [R]: n[this rank][j]. */
  readonly numTokensPerRank: Tensor
  /** i32 [E]: selections of each expert by this rank's tokens. */
  readonly numTokensPerExpert: Tensor
  /** bool [T, R]: token t has an expert on rank r. */
  readonly isTokenInRank: Tensor
  /** i32 [R, R]: `[i][j]` = n[0][j] + ... + n[i][j]. Rows of source i lie in [ [i-1][j], [i][j] ) on rank j. */
  readonly rankPrefixMatrix: Tensor
  /** i32 [R, C]: `[r][c]` = tokens of this rank's channels 0..c that go to rank r. */
  readonly channelPrefixMatrix: Tensor
  /** i32 [R, C]: `[s][c]` = rows that came from channels 0..c of source s. */
  readonly recvChannelPrefixMatrix: Tensor
  /** i32 [T, R]: row of token t in rank r's recvX, -1 when it was not sent there (grouped: its place among this rank's tokens). */
  readonly sendHead: Tensor
  /** i32 [L]: selections of each local expert by received rows, each rounded up to expertAlignment. */
  readonly numRecvTokensPerExpert: Tensor
  /** i32 [L]: selections of each local expert by received rows. */
  readonly numRecvSelections: Tensor
  /** i32 [T, K]: row of each selection at the rank of its expert, -1 for none. Grouped only. */
  readonly slotRow: Tensor | undefined
  /**
   * Rows of this rank: rankPrefixMatrix[R-1][this rank], grouped the sum of numRecvTokensPerExpert. At worst-case size the buffer's
   * capacity, for the host does not know.
   */
  readonly numRecvTokens: number
  /** Counts as the host knows them; undefined at worst-case size, where it does not wait for them. */
  readonly hostCounts: HostCounts | undefined
}

/** Counts of a dispatch. */
export interface HostCounts {
  /** [R]: rows of each rank when every token has one place there: the last row of rankPrefixMatrix. */
  readonly recvTokensPerRank: Int32Array
  /** [L]: numRecvTokensPerExpert. */
  readonly numRecvTokensPerExpert: Int32Array
}

/** What a combine needs to bring the rows of one dispatch home. */
export interface DispatchHandle {
  readonly plan: DispatchPlan
  /** Holds the rows until combine or release. */
  readonly lease: Lease
  /** Elements of a row. */
  readonly hidden: number
  readonly dtype: DType
  /** i32 [rows]: index of the token at its source rank. */
  readonly recvSrcIdx: Tensor
}

/** What a combine needs to bring grouped rows home. */
export interface GroupedDispatchHandle {
  readonly plan: DispatchPlan
  readonly lease: Lease
  readonly hidden: number
  readonly dtype: DType
  /** [T, K]: the ids that were dispatched. */
  readonly topkIdx: Tensor
  /** f32 [T, K], if they were given. */
  readonly topkWeights: Tensor | undefined
}
