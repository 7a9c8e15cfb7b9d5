/**
 * Puts the places of the largest values of `row` into `chosen`, largest first, and says how many there are. Of equal
 * values the first wins. Minus infinity is never chosen.
 */
export function selectLargest(row: Float32Array, chosen: Int32Array): number {
  let count = 0
  for (let id = 0; id < row.length; id++) {
    const value = row[id]!
    if (value === -Infinity) continue
    if (count === chosen.length && (count === 0 || value <= row[chosen[count - 1]!]!)) continue
    // Only a strictly larger value moves forward, so the lower id stays ahead of its equals.
    let slot = count < chosen.length ? count++ : count - 1
    for (; slot > 0 && value > row[chosen[slot - 1]!]!; slot--) chosen[slot] = chosen[slot - 1]!
    chosen[slot] = id
  }
  return count
}
