import { argumentError, dtypes, requireInteger, type Tensor } from '@moe-ep/core'

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

/** Bytes from the first element to the end of the last, gaps of strided tensors included. */
function spanOf(tensor: Tensor): number {
  if (tensor.numel === 0) return 0
  const last = tensor.shape.reduce((sum, size, d) => sum + (size - 1) * tensor.strides[d]!, 0)
  return Math.ceil(((last + 1) * dtypes[tensor.dtype].bits) / 8)
}

/** @throws ERR_MOE_EP_ARGUMENT when two tensors share bytes: an output must not overwrite what is still to be read. */
export function requireDisjoint(tensors: Readonly<Record<string, Tensor>>): void {
  const ranges = Object.entries(tensors).map(([name, tensor]) => ({
    name,
    begin: tensor.pointer,
    end: tensor.pointer + BigInt(spanOf(tensor)),
  }))
  for (const [i, a] of ranges.entries()) {
    for (const b of ranges.slice(i + 1)) {
      if (a.begin < b.end && b.begin < a.end)
        throw argumentError(b.name, `memory apart from ${a.name}`, 'overlapping bytes')
    }
  }
}

/** @throws ERR_MOE_EP_ARGUMENT unless `value` is one of `names`. */
export function requireName<Name extends string>(argument: string, value: Name, names: readonly Name[]): void {
  if (!names.includes(value)) throw argumentError(argument, names.map((name) => `"${name}"`).join(' or '), value)
}
