import { copyTensor } from '@moe-ep/core'
import { permute } from '@moe-ep/deepgemm-permute'
import type { BenchContext } from '../operations/operation.js'
import { fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { localCase } from './local-case.js'
import { setsOf } from './rotation.js'
import type { Scope } from './scope.js'
import type { TimedCase } from './timed-case.js'

const rowBytes = 8192

/** The driver copies blocks of whole multiples of this up to half as fast again as others. */
const blockBytes = 2 ** 16
/** Of a block from which on rounding its size to such a multiple changes nothing that counts. */
const roundedFrom = 64 * blockBytes

/**
 * Copies inside the GPU's memory that read and write `bytes` in total: `memcpy` is the driver's copy of one contiguous block, `row
 * copy` a permute that changes nothing. The faster one is the ceiling. The bytes are random: copying zeros takes less power.
 */
export async function deviceCopyCeilings(context: BenchContext, scope: Scope, bytes: number): Promise<TimedCase[]> {
  const { device, stopwatch, options } = context
  const { stream } = stopwatch
  const half = blockOf(bytes / 2)
  const rows = Math.ceil(half / rowBytes)
  const buffers = Array.from({ length: setsOf(device, bytes) }, () => {
    const from = scope.zeros([rows, rowBytes], 'u8')
    fillRandom(from, randomKey(options.seed, 'copies', context.group.rank), patterns.anyBits)
    return { from, to: scope.zeros([rows, rowBytes], 'u8') }
  })
  const pieces = buffers.map(({ from, to }) =>
    [from, to].map((block) => block.reshape([rows * rowBytes]).slice(0, half)),
  )
  const topkIdx = scope.zeros([rows, 1], 'i32')
  const expertIds = scope.zeros([rows], 'i32')
  const inversePermutation = scope.zeros([rows, 1], 'i32')
  const oneExpert = { topkIdx, numLocalExperts: 1, alignment: 1, expertNumTokensHost: Int32Array.of(rows) }
  const work = { sets: buffers.length, bytes }
  return [
    await localCase(context, scope, {
      ...{ ...work, name: 'memcpy' },
      enqueue: (set) => copyTensor(pieces[set]![0]!, pieces[set]![1]!, { stream }),
    }),
    await localCase(context, scope, {
      ...{ ...work, name: 'row copy' },
      enqueue(set) {
        const { from, to } = buffers[set]!
        permute(from, { ...oneExpert, out: { rows: to, expertIds, inversePermutation }, stream })
      },
    }),
  ]
}

function blockOf(bytes: number): number {
  return bytes < roundedFrom ? Math.ceil(bytes) : Math.round(bytes / blockBytes) * blockBytes
}
