import { bf16ToF32Array, encode } from '@moe-ep/core'
import type { DispatchHandle } from '@moe-ep/intranode-ht'
import { combineBytes, rules } from '../measure/byte-rules.js'
import { inHostMemory } from '../measure/host-copies.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import { streamCase } from '../measure/timed-case.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns, randomKey, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys, IntranodeBench } from './intranode.js'
import type { BenchContext, Operation } from './operation.js'

/**
 * Combine of bf16 rows. Staged: the rows lie in memory of the rank's own and are copied to where peers read them. Zero-copy: they
 * lie there already, as the dispatch before left them.
 */
export function combineOf({ staged }: { readonly staged: boolean }): Operation {
  return async (context, scope) => {
    const { options, group, device, stopwatch, routing } = context
    const { tokens, hidden, seed } = options
    const bench = await IntranodeBench.create(context, scope, { kind: 'bf16' })
    const { buffer, slots } = bench
    const earlier = await bench.dispatchOnce()
    const { plan } = earlier.handle
    const sets = Array.from({ length: slots }, () => {
      const out = scope.zeros([tokens, hidden], 'bf16')
      if (!staged) return { out, results: undefined }
      const results = scope.zeros([plan.numRecvTokens, hidden], 'bf16')
      fillRandom(results, resultsKey(seed, group.rank), patterns.bf16)
      return { out, results }
    })
    await awaitFills(device)
    const handles: DispatchHandle[] = []
    let last = sets[0]!
    const homeward = routing.matrix.map((_, i) => routing.matrix.map((row) => row[i]!))
    return {
      ...combineBytes(bench.sent, { tokens, rowBytes: hidden * 2 }),
      ...{ rule: rules.combine, block: slots },
      ceilings: await pushCeilings(context, scope, { rows: homeward, rowBytes: hidden * 2, sixteenths: 2 }),
      subject: {
        ...streamCase({
          ...{ name: 'combine', stopwatch, sets: slots },
          enqueue(set) {
            const handle = handles[set]!
            last = sets[set]!
            buffer.combine(last.results ?? buffer.combineInput(handle), handle, { out: last.out, ...bench.launch })
          },
        }),
        async prepare(iteration) {
          const { handle, event } = await bench.dispatch(iteration, earlier)
          await event.synchronize()
          handles[iteration % slots] = handle
        },
      },
      async check() {
        const { sendHead, out } = await inHostMemory(context, scope, { sendHead: plan.sendHead, out: last.out })
        const heads = sendHead.data as Int32Array
        const wrong = sampleRows(tokens).find((token) => {
          const head = heads.subarray(token * options.ranks, (token + 1) * options.ranks)
          const expected = expectedSum(context, { token, head, staged })
          return !sameNumbers(out.slice(token, token + 1).data as Uint16Array, expected)
        })
        return wrong === undefined ? undefined : `token ${wrong} is not the sum of its rows`
      },
    }
  }
}

function resultsKey(seed: number, rank: number): number {
  return randomKey(seed, 'combine results', rank)
}

/** bf16 bits of a token's sum: f32 additions in rank order of the rows at `head[rank]`. */
function expectedSum(
  { options, group, device }: BenchContext,
  { token, head, staged }: { readonly token: number; readonly head: Int32Array; readonly staged: boolean },
): Uint16Array {
  const { hidden, seed } = options
  const rowBytes = hidden * 2
  let sum: Float32Array | undefined
  head.forEach((row, rank) => {
    if (row < 0) return
    const bits = staged
      ? randomRow(resultsKey(seed, rank), patterns.bf16, { device, row, rowBytes })
      : randomRow(inputKeys(seed, group.rank).x, patterns.bf16, { device, row: token, rowBytes })
    const values = bf16ToF32Array(new Uint16Array(bits.buffer))
    sum = sum === undefined ? values : sum.map((value, i) => value + values[i]!)
  })
  return encode('bf16', sum ?? new Float32Array(hidden)) as Uint16Array
}
