import { MoeEpError } from './error.js'

/** The same addon, whose functions throw and reject with MoeEpError instead of plain errors that carry a code. */
export function wrapFunctions<Addon extends object>(addon: Addon): Addon {
  const entries = Object.entries(addon).map(([name, value]) => [
    name,
    typeof value === 'function' ? wrap(value) : value,
  ])
  return Object.fromEntries(entries) as Addon
}

function wrap(call: (...values: unknown[]) => unknown): (...values: unknown[]) => unknown {
  return (...values) => {
    let result: unknown
    try {
      result = call(...values)
    } catch (error) {
      throw MoeEpError.from(error)
    }
    return result instanceof Promise ? result.catch(rethrow) : result
  }
}

function rethrow(error: unknown): never {
  throw MoeEpError.from(error)
}
