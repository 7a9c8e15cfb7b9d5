/** Up to `most` rows of [0, rows), evenly spread, the first and the last among them. */
export function sampleRows(rows: number, most = 9): number[] {
  const count = Math.min(rows, most)
  if (count <= 1) return count === 1 ? [0] : []
  return Array.from({ length: count }, (_, i) => Math.floor((i * (rows - 1)) / (count - 1)))
}

/** Whether two byte ranges or number lists hold the same. */
export function sameNumbers(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}
