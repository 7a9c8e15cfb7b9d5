import { f32ToBf16Array } from '@moe-ep/core'
import { type RandomStream, wordAt } from './random-stream.js'

/** Number of different values: one for each 16-bit half of a random word. */
const tableSize = 65536

let unitTable: Float32Array | undefined

/**
 * A table of normally distributed values with this standard deviation: drawing an entry at random draws from the
 * distribution (up to 4.3 standard deviations). One look-up a value is far quicker than any formula.
 */
export function normalTable(deviation: number): Float32Array {
  unitTable ??= normalQuantiles(tableSize)
  return unitTable.map((value) => value * deviation)
}

/** {@link normalTable} as bf16 bits. */
export function normalTableBf16(deviation: number): Uint16Array {
  return f32ToBf16Array(normalTable(deviation))
}

/**
 * Fills `target` with values number `first`, `first + 1`, ... of a stream of draws from `table`. Pieces of any sizes
 * put together equal the whole, as long as they begin at even places.
 */
export function fillFromTable<T extends Float32Array | Uint16Array>(
  target: T,
  { table, stream, first }: { table: T; stream: RandomStream; first: number },
): void {
  const pairs = target.length >> 1
  for (let pair = 0, word = first / 2; pair < pairs; pair++, word++) {
    const bits = wordAt(stream, word)
    target[2 * pair] = table[bits & 0xffff]!
    target[2 * pair + 1] = table[bits >>> 16]!
  }
  if (target.length % 2 === 1) target[target.length - 1] = table[wordAt(stream, first / 2 + pairs) & 0xffff]!
}

/**
 * The middles of `count` equally likely slices of the standard normal distribution, ascending. The density is summed
 * in small steps; where the sum passes a middle, the place is interpolated. Exactly antisymmetric.
 */
function normalQuantiles(count: number): Float32Array {
  const quantiles = new Float32Array(count)
  const step = 1 / 8192
  const density = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)
  let x = 0
  let below = 0.5
  for (let i = count / 2; i < count; i++) {
    const wanted = (i + 0.5) / count
    let slice = density(x + step / 2) * step
    while (below + slice < wanted) {
      below += slice
      x += step
      slice = density(x + step / 2) * step
    }
    const value = x + step * ((wanted - below) / slice)
    quantiles[i] = value
    quantiles[count - 1 - i] = -value
  }
  return quantiles
}
