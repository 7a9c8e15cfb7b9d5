import { SymmetricMemory } from '@moe-ep/transport'
import { rules } from '../measure/byte-rules.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { setsOf } from '../measure/rotation.js'
import { inHostMemory } from '../measure/host-copies.js'
import { streamCase, type TimedCase } from '../measure/timed-case.js'
import { fillRandom, patterns, randomKey, randomRow } from '../workload/random-words.js'
import { rowBytes } from '../workload/matrix-rows.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import type { Scope } from '../measure/scope.js'
import type { BenchContext, Operation } from './operation.js'

/** All ranks at once push their tokens to the next rank in one put. */
export const put: Operation = async (context, scope) => {
  const { options, group, device, stopwatch } = context
  const { tokens, hidden, seed } = options
  const { rank, worldSize } = group
  const byteLength = tokens * hidden * 2
  const sets = setsOf(device, 2 * byteLength)
  const memory = scope.own(await SymmetricMemory.create(group, { byteLength: sets * byteLength, device }))
  const sources = Array.from({ length: sets }, () => {
    const source = scope.zeros([tokens, hidden], 'bf16')
    fillRandom(source, randomKey(seed, 'put', rank), patterns.bf16)
    return source
  })
  let last = 0
  return {
    ...{ bytes: 2 * byteLength, wireBytes: worldSize > 1 ? byteLength : 0, logicalBytes: byteLength, rule: rules.put },
    ceilings: await putCeilings(context, scope),
    subject: streamCase({
      ...{ name: 'put', stopwatch, sets },
      enqueue(set) {
        last = set
        const peer = (rank + 1) % worldSize
        memory.put(sources[set]!, { peer, byteOffset: set * byteLength, stream: stopwatch.stream })
      },
    }),
    async check() {
      const key = randomKey(seed, 'put', (rank + worldSize - 1) % worldSize)
      const place = { byteOffset: last * byteLength, shape: [tokens, hidden], dtype: 'bf16' } as const
      const arrived = await inHostMemory(context, scope, memory.tensor(place))
      const wrong = sampleRows(tokens).find((row) => {
        const expected = randomRow(key, patterns.bf16, { device, row, rowBytes: hidden * 2 })
        return !sameNumbers(rowBytes(arrived, row), expected)
      })
      return wrong === undefined ? undefined : `row ${wrong} is not that of the peer`
    },
  }
}

/** On the cpu peers are as near as oneself: any copy will do. Between GPUs the same bytes go by other ways. */
function putCeilings(context: BenchContext, scope: Scope): Promise<TimedCase[]> {
  const { options, group, device } = context
  const { tokens, hidden } = options
  if (device.kind === 'cpu') return copyCeilings(context, scope, 2 * tokens * hidden * 2)
  const ranks = Array.from({ length: group.worldSize }, (_, rank) => rank)
  const rows = ranks.map((i) => ranks.map((j) => ((i + 1) % ranks.length === j ? tokens : 0)))
  return pushCeilings(context, scope, { rows, rowBytes: hidden * 2, sixteenths: 2 })
}

const tripsPerIteration = 64

/** Ranks 0 and 1 answer each other's signals; further ranks only wait for the next iteration. */
export const signalRoundTrip: Operation = async ({ group, device, stopwatch }, scope) => {
  const { rank, worldSize } = group
  const { stream } = stopwatch
  const memory = scope.own(await SymmetricMemory.create(group, { byteLength: 0, numSignals: 1, device }))
  const peer = worldSize === 1 ? 0 : 1 - rank
  let value = 0
  const trip = (): void => {
    value++
    if (rank === 0) memory.signal({ peer, index: 0, value, stream })
    memory.wait({ index: 0, value, what: 'round trip', stream })
    if (rank === 1) memory.signal({ peer, index: 0, value, stream })
  }
  return {
    ...{ bytes: 0, ceilings: [] },
    rule: `one of ${tripsPerIteration} round trips in a row between ranks 0 and 1 (a rank and itself in a world of one)`,
    subject: {
      ...{ name: 'round trip', sets: 1 },
      async time() {
        const { streamUs } = await stopwatch.time(() => {
          if (rank > 1) return
          for (let i = 0; i < tripsPerIteration; i++) trip()
        })
        return streamUs / tripsPerIteration
      },
    },
    check: () => (rank > 1 || memory.signalValue(0) === BigInt(value) ? undefined : 'a signal was lost'),
  }
}
