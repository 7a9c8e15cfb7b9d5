/** One contiguous copy into a peer's memory. */
export interface Push {
  readonly peer: number
  readonly sourceOffset: number
  readonly targetOffset: number
  readonly byteLength: number
}

/**
 * The pushes of one rank, itself first, and the sizes that suit every rank. All pushes read from the start of the source, as rows
 * that go to several ranks are read from one place.
 */
export function pushesOf(
  { rows, rowBytes }: { readonly rows: readonly (readonly number[])[]; readonly rowBytes: number },
  rank: number,
): { readonly pushes: Push[]; readonly sourceBytes: number; readonly targetBytes: number } {
  const ranks = rows.length
  const incoming = rows.map((_, peer) => rows.reduce((sum, row) => sum + row[peer]!, 0))
  const pushes = rows.map((_, step) => {
    const peer = (rank + step) % ranks
    const before = rows.slice(0, rank).reduce((sum, row) => sum + row[peer]!, 0)
    return { peer, sourceOffset: 0, targetOffset: before * rowBytes, byteLength: rows[rank]![peer]! * rowBytes }
  })
  return {
    pushes: pushes.filter(({ byteLength }) => byteLength > 0),
    sourceBytes: Math.max(...rows.flat()) * rowBytes,
    targetBytes: Math.max(...incoming) * rowBytes,
  }
}

/** The same bytes in pieces of at most `pieceBytes`, in turns over the destinations. */
export function piecesOf(pushes: readonly Push[], pieceBytes: number): Push[] {
  const longest = Math.max(0, ...pushes.map(({ byteLength }) => byteLength))
  const pieces: Push[] = []
  for (let begin = 0; begin < longest; begin += pieceBytes) {
    for (const { peer, sourceOffset, targetOffset, byteLength } of pushes) {
      const length = Math.min(pieceBytes, byteLength - begin)
      if (length <= 0) continue
      pieces.push({ peer, sourceOffset: sourceOffset + begin, targetOffset: targetOffset + begin, byteLength: length })
    }
  }
  return pieces
}
