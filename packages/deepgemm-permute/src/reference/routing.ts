import { argumentError } from '@moe-ep/core'

/** Expert ids of every token's slots. */
export type Ids = readonly (readonly number[])[]

/** Which slots are local: without a map every id but -1 is. */
export interface LocalExpertOptions {
  readonly numLocalExperts: number
  readonly expertMap?: ArrayLike<number>
}

/** Slots of every local expert. */
export function countExpertNumTokens(topkIdx: Ids, options: LocalExpertOptions): Int32Array {
  const slots = topkIdx.flat().map((id) => localExpert(id, options))
  return Int32Array.from(
    { length: options.numLocalExperts },
    (_, expert) => slots.filter((slot) => slot === expert).length,
  )
}

/** Rows with padding: exact where the counts are known, else a bound. */
export function computeAlignedM(options: {
  readonly numTokens: number
  readonly topk: number
  readonly numLocalExperts: number
  readonly alignment?: number
  readonly expertNumTokens?: ArrayLike<number>
}): number {
  const { numTokens, topk, numLocalExperts, alignment = 128, expertNumTokens } = options
  if (expertNumTokens === undefined) return roundUp(numTokens * topk + numLocalExperts * (alignment - 1), alignment)
  return Array.from(expertNumTokens).reduce((sum, count) => sum + roundUp(count, alignment), 0)
}

/** Local id, or -1 for a slot that is skipped. */
export function localExpert(id: number, { numLocalExperts, expertMap }: LocalExpertOptions): number {
  if (id === -1) return -1
  const numGlobal = expertMap?.length ?? numLocalExperts
  if (id < 0 || id >= numGlobal) throw argumentError('topkIdx', `-1 or an expert below ${numGlobal}`, id)
  const local = expertMap?.[id] ?? id
  if (local < -1 || local >= numLocalExperts)
    throw argumentError('expertMap', `-1 or a local expert below ${numLocalExperts}`, local)
  return local
}

export function roundUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment
}
