import { bf16ToF32Array, encode } from '@moe-ep/core'
import { reference } from '@moe-ep/deepgemm-permute'
import type { GroupedDispatchHandle } from '@moe-ep/intranode-ht'
import { combineGroupedBytes, rules } from '../measure/byte-rules.js'
import { inHostMemory } from '../measure/host-copies.js'
import { pushCeilings } from '../measure/push-ceilings.js'
import { streamCase } from '../measure/timed-case.js'
import { awaitFills } from '../workload/device-words.js'
import { fillRandom, patterns, randomKey, randomRow } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import { inputKeys, IntranodeBench } from './intranode.js'
import type { BenchContext, Operation } from './operation.js'

/** Combine from bf16 rows in the layout of grouped GEMMs, weights applied; staged and zero-copy as in a plain combine. */
export function combineGroupedOf({ staged }: { readonly staged: boolean }): Operation {
  return async (context, scope) => {
    const { options, group, device, stopwatch } = context
    const { tokens, hidden, topk, seed } = options
    const bench = await IntranodeBench.create(context, scope, { kind: 'bf16', grouped: true })
    const { buffer, slots } = bench
    const earlier = await bench.dispatchGroupedOnce()
    const { plan } = earlier.handle
    const sets = Array.from({ length: slots }, () => {
      const out = scope.zeros([tokens, hidden], 'bf16')
      if (!staged) return { out, results: undefined }
      const results = scope.zeros([plan.numRecvTokens, hidden], 'bf16')
      fillRandom(results, resultsKey(seed, group.rank), patterns.bf16)
      return { out, results }
    })
    await awaitFills(device)
    const handles: GroupedDispatchHandle[] = []
    let last = sets[0]!
    const { crossingRows } = bench
    const homeward = crossingRows.map((_, i) => crossingRows.map((row) => row[i]!))
    return {
      ...combineGroupedBytes(bench.sentGrouped, { tokens, rowBytes: hidden * 2, topk }),
      ...{ rule: rules.combineGrouped, block: slots },
      ceilings: await pushCeilings(context, scope, { rows: homeward, rowBytes: hidden * 2, sixteenths: 3 }),
      subject: {
        ...streamCase({
          ...{ name: 'combine', stopwatch, sets: slots },
          enqueue(set) {
            const handle = handles[set]!
            last = sets[set]!
            buffer.combineGrouped(last.results ?? buffer.combineInput(handle), handle, {
              out: last.out,
              ...bench.launch,
            })
          },
        }),
        async prepare(iteration) {
          const { handle, event } = await bench.dispatchGrouped(iteration, earlier)
          await event.synchronize()
          handles[iteration % slots] = handle
        },
      },
      async check() {
        const { topkWeights } = bench
        const found = await inHostMemory(context, scope, { slotRow: plan.slotRow!, topkWeights, out: last.out })
        const wrong = sampleRows(tokens).find((token) => {
          const [rows, weights] = [found.slotRow, found.topkWeights].map((tensor) =>
            Array.from(tensor.slice(token, token + 1).data, Number),
          )
          const expected = expectedSum(context, { token, rows: rows!, weights: weights!, staged })
          return !sameNumbers(found.out.slice(token, token + 1).data as Uint16Array, expected)
        })
        return wrong === undefined ? undefined : `token ${wrong} is not the sum of its rows`
      },
    }
  }
}

function resultsKey(seed: number, rank: number): number {
  return randomKey(seed, 'grouped results', rank)
}

interface TokenRows {
  readonly token: number
  /** Row of each slot at the rank of its expert. */
  readonly rows: readonly number[]
  readonly weights: readonly number[]
  readonly staged: boolean
}

/** bf16 bits of a token's sum: what an unpermute leaves on each rank, rounded, then added in rank order. */
function expectedSum(
  { options, group, device, routing }: BenchContext,
  { token, rows, weights, staged }: TokenRows,
): Uint16Array {
  const { hidden, seed, topk } = options
  const experts = routing.topkIdx(group.rank).subarray(token * topk, (token + 1) * topk)
  const owners = Array.from(experts, (expert) => routing.placement.rankOf(expert))
  const rowBytes = hidden * 2
  const numbers = rows.map((row, slot) => {
    const bits = staged
      ? randomRow(resultsKey(seed, owners[slot]!), patterns.bf16, { device, row, rowBytes })
      : randomRow(inputKeys(seed, group.rank).x, patterns.bf16, { device, row: token, rowBytes })
    return Array.from(bf16ToF32Array(new Uint16Array(bits.buffer)))
  })
  let sum: Float32Array | undefined
  for (const rank of [...new Set(owners)].sort((a, b) => a - b)) {
    const [partial] = reference.unpermuteAndReduce(numbers, {
      topkIdx: [owners.map((owner) => (owner === rank ? 0 : -1))],
      topkWeights: [weights],
      inversePermutation: [numbers.map((_, slot) => slot)],
      hidden,
    })
    const rounded = bf16ToF32Array(encode('bf16', partial!) as Uint16Array)
    sum = sum === undefined ? rounded : sum.map((value, i) => value + rounded[i]!)
  }
  return encode('bf16', sum ?? new Float32Array(hidden)) as Uint16Array
}
