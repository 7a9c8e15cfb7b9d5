import { argumentError } from './error.js'

/** @throws ERR_MOE_EP_ARGUMENT unless `value` is an integer in [minimum, maximum]. */
export function requireInteger(
  argument: string,
  value: unknown,
  minimum: number,
  maximum = Number.MAX_SAFE_INTEGER,
): asserts value is number {
  if (!Number.isSafeInteger(value) || (value as number) < minimum || (value as number) > maximum) {
    const limit = maximum === Number.MAX_SAFE_INTEGER ? `${minimum} or more` : `${minimum} to ${maximum}`
    throw argumentError(argument, `an integer, ${limit}`, value)
  }
}
