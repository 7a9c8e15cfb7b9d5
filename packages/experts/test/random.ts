/** `length` values in [-0.5, 0.5) that only `seed` decides. */
export function randomValues(length: number, seed: number): Float32Array {
  let state = (seed * 2654435761 + 1) >>> 0
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32 - 0.5
  })
}

/** The largest absolute difference over the largest absolute expected value. */
export function relativeError(actual: Float32Array, expected: Float32Array): number {
  if (actual.length !== expected.length) return Infinity
  let difference = 0
  let scale = 0
  for (const [i, value] of expected.entries()) {
    difference = Math.max(difference, Math.abs(actual[i]! - value))
    scale = Math.max(scale, Math.abs(value))
  }
  return difference / scale
}
