import { CudaDevice, type Device, Graph, type Stream, type Tensor } from '@moe-ep/core'
import { SymmetricMemory } from '@moe-ep/transport'
import type { BenchContext } from '../operations/operation.js'
import { awaitFills } from '../workload/device-words.js'
import { bytesOf, fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { pushOnSameSms } from './ceiling-names.js'
import { PushLanes } from './push-lanes.js'
import { piecesOf, type Push, pushesOf } from './push-plan.js'
import { RowPushes } from './push-rows.js'
import { oppositeSet, setsOf } from './rotation.js'
import type { Scope } from './scope.js'
import { streamCase, type TimedCase } from './timed-case.js'

const pieceBytesPerThread = 2 ** 20
/** Small against a GPU's cache, and yet a copy that takes longer than it takes to start one. */
const devicePieceBytes = 2 ** 22

export interface PushedMatrix {
  /** `[i][j]`: rows from rank i to rank j. */
  readonly rows: readonly (readonly number[])[]
  readonly rowBytes: number
  /** Multiprocessors that the operation takes where the command line says nothing, in sixteenths of a GPU's. */
  readonly sixteenths: number
}

/**
 * All ranks at once push the same byte matrix: `rows[i][j]` rows of `rowBytes` bytes from rank i to rank j, rows to oneself
 * included, straight to where they would lie in order of the source. Once with one put a destination, once in pieces that take
 * turns over the destinations, so that the piece is read from cache for all but the first, and once row by row with stores that pass
 * the caches by when rows are many (a permute that changes nothing, into the peer's memory). The fastest one is the ceiling.
 *
 * On cuda puts to different peers run at the same time, and each way is a graph. One kernel pushes all of it, too: on as many
 * multiprocessors as the operation has, and on all.
 */
export async function pushCeilings(context: BenchContext, scope: Scope, matrix: PushedMatrix): Promise<TimedCase[]> {
  const { group, stopwatch, device, options } = context
  const { stream } = stopwatch
  const { pushes, sourceBytes, targetBytes } = pushesOf(matrix, group.rank)
  const sets = setsOf(device, targetBytes)
  const memory = scope.own(await SymmetricMemory.create(group, { byteLength: sets * targetBytes, device }))
  const sources = Array.from({ length: sets }, () => filledSource(context, scope, sourceBytes))
  await awaitFills(device)
  const lanes = new PushLanes(context, scope, new Set(pushes.map(({ peer }) => peer)))
  const captured = (puts: readonly Push[]): Graph[] =>
    sources.map((source, set) =>
      lanes.capture(scope, puts, ({ peer, sourceOffset, targetOffset, byteLength }, lane) => {
        const piece = source.slice(sourceOffset, sourceOffset + byteLength)
        memory.put(piece, { peer, byteOffset: set * targetBytes + targetOffset, stream: lane })
      }),
    )
  const contiguous = captured(pushes)
  const interleaved = captured(piecesOf(pushes, pieceBytesOf(device, options.threads)))
  const { rowBytes } = matrix
  const byRow = new RowPushes(context, scope, { memory, rowBytes, mostRows: sourceBytes / rowBytes })
  const pushRows = (set: number): void => {
    for (const push of pushes) byRow.enqueue(sources[set]!, push, set * targetBytes)
  }
  const launchRows = device.kind === 'cpu' ? pushRows : await graphs(stream, scope, sets, pushRows)
  const byKernel = async (name: string, numSms: number): Promise<TimedCase> => {
    const launch = await graphs(stream, scope, sets, (set) => {
      const puts = pushes.map(({ peer, sourceOffset, targetOffset, byteLength }) => ({
        ...{ source: sources[set]!.slice(sourceOffset, sourceOffset + byteLength), peer },
        byteOffset: set * targetBytes + targetOffset,
      }))
      memory.putAll(puts, { stream, numSms })
    })
    return streamCase({ name, stopwatch, sets, enqueue: (turn) => launch(turn % sets) })
  }
  const kernels =
    device instanceof CudaDevice
      ? [
          await byKernel(
            pushOnSameSms,
            options.sms ?? Math.max(1, Math.floor((device.multiprocessors * matrix.sixteenths) / 16)),
          ),
          await byKernel('push, all SMs', device.multiprocessors),
        ]
      : []
  return [
    ...kernels,
    streamCase({ name: 'push', stopwatch, sets, enqueue: (set) => contiguous[set]!.launch(stream) }),
    streamCase({
      ...{ name: 'push in pieces', stopwatch, sets },
      enqueue: (set) => interleaved[oppositeSet(set, sets)]!.launch(stream),
    }),
    streamCase({
      ...{ name: 'push of rows', stopwatch, sets },
      enqueue: (turn) => launchRows((turn + Math.floor(sets / 4)) % sets),
    }),
  ]
}

/** On cuda with random bytes: copying the same one takes less power. */
function filledSource({ device, options, group }: BenchContext, scope: Scope, bytes: number): Tensor {
  const source = scope.zeros([bytes], 'u8')
  if (device.kind === 'cpu') bytesOf(source).fill(1)
  else fillRandom(source, randomKey(options.seed, 'push', group.rank), patterns.anyBits)
  return source
}

function pieceBytesOf(device: Device, threads: number): number {
  return device.kind === 'cpu' ? pieceBytesPerThread * threads : devicePieceBytes
}

/** A graph for each set; the first call runs before, for what it loads or allocates is no part of a capture. */
async function graphs(
  stream: Stream,
  scope: Scope,
  sets: number,
  enqueue: (set: number) => void,
): Promise<(set: number) => void> {
  enqueue(0)
  await stream.synchronize()
  const captured = Array.from({ length: sets }, (_, set) => scope.own(Graph.capture(stream, () => enqueue(set))))
  return (set) => captured[set]!.launch(stream)
}
