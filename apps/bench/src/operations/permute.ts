import { Tensor } from '@moe-ep/core'
import { permute } from '@moe-ep/deepgemm-permute'
import { permuteBytes, rules, scaleBytesOf } from '../measure/byte-rules.js'
import { copyCeilings } from '../measure/copy-ceilings.js'
import { rotatingSets } from '../measure/rotation.js'
import { streamCase } from '../measure/timed-case.js'
import { expertRowsOf } from '../workload/expert-rows.js'
import { bytesOf, fillRandom, patterns, randomKey } from '../workload/random-words.js'
import { sameNumbers, sampleRows } from '../workload/sample-rows.js'
import type { Operation } from './operation.js'

/** Permute of the rows that this rank receives in a dispatch, with counts known on the host. */
export function permuteOf(kind: 'bf16' | 'fp8'): Operation {
  return async (context, scope) => {
    const { options, group, device, stopwatch, routing } = context
    const { hidden, topk, seed } = options
    const { received, numLocalExperts, expertNumTokens, capacity, inverse } = expertRowsOf(routing, group.rank)
    const groups = scaleBytesOf(hidden) / 4
    const rowBytes = kind === 'bf16' ? hidden * 2 : hidden + scaleBytesOf(hidden)
    const bytes = permuteBytes({ ...received, topk }, rowBytes)
    const topkIdx = Tensor.from(received.topkIdx, [received.rows, topk], 'i32', device)
    const dtype = kind === 'bf16' ? 'bf16' : 'fp8e4m3'
    const sets = Array.from({ length: rotatingSets(bytes) }, () => {
      const x = scope.zeros([received.rows, hidden], dtype)
      fillRandom(x, randomKey(seed, 'permute', group.rank), patterns[kind])
      const rows = scope.zeros([capacity, hidden], dtype)
      const shared = {
        expertIds: scope.zeros([capacity], 'i32'),
        inversePermutation: scope.zeros([received.rows, topk], 'i32'),
      }
      if (kind === 'bf16') return { x, scales: undefined, out: { rows, ...shared } }
      const scales = scope.zeros([received.rows, groups], 'f32')
      fillRandom(scales, randomKey(seed, 'permute scales', group.rank), patterns.scale)
      return { x, scales, out: { rows, scales: scope.zeros([capacity, groups], 'f32'), ...shared } }
    })
    let last = sets[0]!
    return {
      ...{ bytes, rule: rules.permute, ceilings: await copyCeilings(context, scope, bytes) },
      subject: streamCase({
        ...{ name: 'permute', stopwatch, sets: sets.length },
        enqueue(set) {
          last = sets[set]!
          const { x, scales, out } = last
          const counts = { numLocalExperts, expertNumTokensHost: expertNumTokens }
          permute(x, { topkIdx, ...counts, ...(scales && { scales }), out, stream: stopwatch.stream })
        },
      }),
      check() {
        const { x, scales, out } = last
        if (!sameNumbers(out.inversePermutation.data as Int32Array, inverse)) return 'inversePermutation is wrong'
        const row = (matrix: Tensor, index: number): Uint8Array => bytesOf(matrix.slice(index, index + 1))
        for (const token of sampleRows(received.rows)) {
          for (let slot = token * topk; slot < (token + 1) * topk; slot++) {
            const place = inverse[slot]!
            if (place < 0) continue
            if (out.expertIds.data[place] !== received.topkIdx[slot]) return `expertIds[${place}] is wrong`
            if (!sameNumbers(row(out.rows, place), row(x, token))) return `row ${place} is not that of token ${token}`
            if (scales && !sameNumbers(row(out.scales!, place), row(scales, token)))
              return `scales of row ${place} are wrong`
          }
        }
        return undefined
      },
    }
  }
}
