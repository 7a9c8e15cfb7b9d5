import { argumentError, requireInteger } from '@moe-ep/core'

/** `value` rounded up to a multiple of `alignment`, for integers that doubles hold exactly. */
export function roundUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment
}

/**
 * `x` rounded up to a multiple of 128: the tile of DeepGEMM on SM90.
 * @throws ERR_MOE_EP_ARGUMENT unless `x` is an integer, 0 or more.
 */
export function roundUp128(x: number): number {
  requireInteger('x', x, 0)
  return roundUp(x, 128)
}

/**
 * The sum of the counts, each rounded up to a multiple of `alignment`: the rows of the contiguous layout.
 * @param expertNumTokens counts of 0 or more, on the host.
 * @throws ERR_MOE_EP_ARGUMENT.
 */
export function expertNumTokensRoundUpAndSum(expertNumTokens: Int32Array, alignment: number): number {
  requireInteger('alignment', alignment, 1)
  requireHostCounts('expertNumTokens', expertNumTokens)
  return expertNumTokens.reduce((sum, count) => sum + roundUp(count, alignment), 0)
}

/** @throws ERR_MOE_EP_ARGUMENT unless `value` holds counts of 0 or more: one for each local expert, where that is given. */
export function requireHostCounts(
  argument: string,
  value: unknown,
  numLocalExperts?: number,
): asserts value is Int32Array {
  if (!(value instanceof Int32Array)) throw argumentError(argument, 'an Int32Array', value)
  if (numLocalExperts !== undefined && value.length !== numLocalExperts)
    throw argumentError(argument, `${numLocalExperts} counts`, `${value.length} counts`)
  const negative = value.find((count) => count < 0)
  if (negative !== undefined) throw argumentError(argument, 'counts of 0 or more', negative)
}
