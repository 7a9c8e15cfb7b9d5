import { MoeEpError } from '@moe-ep/core'

/** How tokens find their experts: by the gate alone, or by the gate among the experts that the kind allows. */
export type RoutingKind =
  | { readonly name: 'uniform' }
  | { readonly name: 'skewed' }
  | { readonly name: 'hot'; readonly rank: number }
  | { readonly name: 'empty'; readonly rank: number }

/**
 * The kind that `text` names: `uniform`, `skewed`, `hot:RANK` or `empty:RANK`.
 * @throws ERR_MOE_EP_CONFIG for anything else, also for a rank that is not below `ranks`.
 */
export function parseRouting(text: string, { ranks }: { readonly ranks: number }): RoutingKind {
  if (text === 'uniform' || text === 'skewed') return { name: text }
  const match = /^(hot|empty):(\d{1,9})$/.exec(text)
  if (match === null) {
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `routing: expected uniform, skewed, hot:RANK or empty:RANK, not ${text}`)
  }
  const rank = Number(match[2])
  if (rank >= ranks) {
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `routing ${text}: there are only ${ranks} ranks, 0 to ${ranks - 1}`)
  }
  return { name: match[1] as 'hot' | 'empty', rank }
}
