import { argumentError } from '@moe-ep/core'

/**
 * The local id of an expert: -1 stays -1, any other id is looked up.
 *
 * On tensors nobody needs to call it: every operation takes the map and applies it to the ids itself.
 * @param expertMap global to local id on the host, -1 for foreign experts.
 * @throws ERR_MOE_EP_ARGUMENT for an id that the map does not have.
 */
export function applyExpertMap(expertId: number, expertMap: ArrayLike<number>): number {
  if (expertId === -1) return -1
  const local = expertMap[expertId]
  if (local === undefined) throw argumentError('expertId', `-1 or an expert below ${expertMap.length}`, expertId)
  return local
}
