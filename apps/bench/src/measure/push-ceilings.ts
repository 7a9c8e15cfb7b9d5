import { Graph, type Tensor } from '@moe-ep/core'
import { permute } from '@moe-ep/deepgemm-permute'
import { SymmetricMemory } from '@moe-ep/transport'
import type { BenchContext } from '../operations/operation.js'
import { piecesOf, type Push, pushesOf } from './push-plan.js'
import { oppositeSet, rotatingSets } from './rotation.js'
import type { Scope } from './scope.js'
import { bytesOf } from '../workload/random-words.js'
import { streamCase, type TimedCase } from './timed-case.js'

const pieceBytesPerThread = 2 ** 20

/**
 * All ranks at once push the same byte matrix: `rows[i][j]` rows of `rowBytes` bytes from rank i to rank j, rows to oneself
 * included, straight to where they would lie in order of the source. Once with one put a destination, once in pieces that take
 * turns over the destinations, so that the piece is read from cache for all but the first, and once row by row with stores that pass
 * the caches by when rows are many (a permute that changes nothing, into the peer's memory). The fastest one is the ceiling.
 */
export async function pushCeilings(
  context: BenchContext,
  scope: Scope,
  matrix: { readonly rows: readonly (readonly number[])[]; readonly rowBytes: number },
): Promise<TimedCase[]> {
  const { group, stopwatch, options } = context
  const { stream } = stopwatch
  const { pushes, sourceBytes, targetBytes } = pushesOf(matrix, group.rank)
  const sets = rotatingSets(targetBytes)
  const memory = scope.own(await SymmetricMemory.create(group, { byteLength: sets * targetBytes }))
  const captureSet = (set: number, puts: readonly Push[]): Graph => {
    const source = sources[set]!
    return Graph.capture(stream, () => {
      for (const { peer, sourceOffset, targetOffset, byteLength } of puts) {
        const piece = source.slice(sourceOffset, sourceOffset + byteLength)
        memory.put(piece, { peer, byteOffset: set * targetBytes + targetOffset, stream })
      }
    })
  }
  const mostRows = sourceBytes / matrix.rowBytes
  const topkIdx = scope.zeros([mostRows, 1], 'i32')
  const inversePermutation = scope.zeros([mostRows, 1], 'i32')
  const expertIds = scope.zeros([mostRows], 'i32')
  const pushRows = (source: Tensor, { peer, targetOffset, byteLength }: Push, set: number): void => {
    const count = byteLength / matrix.rowBytes
    const shape = [count, matrix.rowBytes]
    const rows = memory.tensor({ rank: peer, byteOffset: set * targetBytes + targetOffset, shape, dtype: 'u8' })
    const out = { rows, expertIds: expertIds.slice(0, count), inversePermutation: inversePermutation.slice(0, count) }
    const oneExpert = {
      topkIdx: topkIdx.slice(0, count),
      numLocalExperts: 1,
      expertNumTokensHost: Int32Array.of(count),
    }
    permute(source.slice(0, byteLength).reshape(shape), { ...oneExpert, alignment: 1, out, stream })
  }
  const sources = Array.from({ length: sets }, () => {
    const source = scope.zeros([sourceBytes], 'u8')
    bytesOf(source).fill(1)
    return source
  })
  const pieces = piecesOf(pushes, pieceBytesPerThread * options.threads)
  const contiguous = sources.map((_, set) => captureSet(set, pushes))
  const interleaved = sources.map((_, set) => captureSet(set, pieces))
  return [
    streamCase({ name: 'push', stopwatch, sets, enqueue: (set) => contiguous[set]!.launch(stream) }),
    streamCase({
      ...{ name: 'push in pieces', stopwatch, sets },
      enqueue: (set) => interleaved[oppositeSet(set, sets)]!.launch(stream),
    }),
    streamCase({
      ...{ name: 'push of rows', stopwatch, sets },
      enqueue(turn) {
        const set = (turn + Math.floor(sets / 4)) % sets
        for (const push of pushes) pushRows(sources[set]!, push, set)
      },
    }),
  ]
}
