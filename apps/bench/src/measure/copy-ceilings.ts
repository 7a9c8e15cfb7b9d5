import { permute } from '@moe-ep/deepgemm-permute'
import { SymmetricMemory } from '@moe-ep/transport'
import type { BenchContext } from '../operations/operation.js'
import { oppositeSet, rotatingSets } from './rotation.js'
import type { Scope } from './scope.js'
import { bytesOf } from '../workload/random-words.js'
import { streamCase, type TimedCase } from './timed-case.js'

const rowBytes = 8192

/**
 * Copies that read and write `bytes` in total with the stream's threads: `memcpy` of one contiguous block, and the row copy of
 * a permute that changes nothing, whose stores pass the caches by when rows are many. The faster one is the ceiling.
 */
export async function copyCeilings(context: BenchContext, scope: Scope, bytes: number): Promise<TimedCase[]> {
  const { stopwatch, solo } = context
  const { stream } = stopwatch
  const half = Math.ceil(bytes / 2)
  const rows = Math.max(1, Math.ceil(half / rowBytes))
  const blockBytes = rows * rowBytes
  const sets = rotatingSets(bytes)
  const target = scope.own(await SymmetricMemory.create(solo, { byteLength: sets * blockBytes }))
  const sources = Array.from({ length: sets }, () => {
    const source = scope.zeros([rows, rowBytes], 'u8')
    bytesOf(source).fill(1)
    return source
  })
  const topkIdx = scope.zeros([rows, 1], 'i32')
  const expertIds = scope.zeros([rows], 'i32')
  const inversePermutation = scope.zeros([rows, 1], 'i32')
  const pieces = sources.map((source) => source.reshape([blockBytes]).slice(0, half))
  const places = sources.map((_, set) =>
    target.tensor({ byteOffset: set * blockBytes, shape: [rows, rowBytes], dtype: 'u8' }),
  )
  const expertNumTokensHost = Int32Array.of(rows)
  return [
    streamCase({
      ...{ name: 'memcpy', stopwatch, sets },
      enqueue: (set) => target.put(pieces[set]!, { peer: 0, byteOffset: set * blockBytes, stream }),
    }),
    streamCase({
      ...{ name: 'row copy', stopwatch, sets },
      enqueue(turn) {
        const set = oppositeSet(turn, sets)
        const out = { rows: places[set]!, expertIds, inversePermutation }
        permute(sources[set]!, { topkIdx, numLocalExperts: 1, alignment: 1, expertNumTokensHost, out, stream })
      },
    }),
  ]
}
