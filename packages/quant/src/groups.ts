import { argumentError, overlap, requireInteger, type Tensor } from '@moe-ep/core'

/** Elements that share a scale when nothing else is asked for. */
export const defaultGroupSize = 128

/**
 * Scales of one row: ceil(hidden / groupSize). The last group may be short.
 * @throws ERR_MOE_EP_ARGUMENT when either is not an integer, 1 or more.
 */
export function numGroupsOf(hidden: number, groupSize: number = defaultGroupSize): number {
  requireInteger('hidden', hidden, 1)
  requireInteger('groupSize', groupSize, 1)
  return Math.ceil(hidden / groupSize)
}

/** @throws ERR_MOE_EP_ARGUMENT when two tensors share bytes: an output must not overwrite what is still to be read. */
export function requireDisjoint(tensors: Readonly<Record<string, Tensor>>): void {
  const names = Object.keys(tensors)
  for (let i = 1; i < names.length; i++) {
    for (let j = 0; j < i; j++) {
      if (overlap(tensors[names[i]!]!, tensors[names[j]!]!))
        throw argumentError(names[i]!, `memory apart from ${names[j]}`, 'overlapping bytes')
    }
  }
}

/** @throws ERR_MOE_EP_ARGUMENT unless `value` is one of `names`. */
export function requireName<Name extends string>(argument: string, value: Name, names: readonly Name[]): void {
  if (!names.includes(value)) throw argumentError(argument, names.map((name) => `"${name}"`).join(' or '), value)
}
