import { argumentError, MoeEpError, requireTensor, type Stream, type Tensor } from '@moe-ep/core'
import type { DispatchOptions, DispatchOut, DispatchResult } from './dispatch-types.js'
import { enqueueCopyRows } from './kernel-calls.js'

const names = ['recvX', 'recvXScales', 'recvTopkIdx', 'recvTopkWeights'] as const

/**
 * Checks the caller's memory for what arrives, as far as it can be judged before the counts are known.
 * @throws ERR_MOE_EP_ARGUMENT; with a plan, whose rows are known, ERR_MOE_EP_CAPACITY when there is too little of it.
 */
export function checkOut(x: Tensor, { out, plan, scales, topkIdx, topkWeights }: DispatchOptions): void {
  if (out === undefined) return
  const sent = { recvX: x, recvXScales: scales, recvTopkIdx: topkIdx, recvTopkWeights: topkWeights }
  for (const name of names) {
    const target = out[name]
    if (target === undefined) continue
    const from = sent[name]
    if (from === undefined) throw argumentError(`out.${name}`, 'nothing, for nothing of it was sent', String(target))
    requireTensor(`out.${name}`, target, { dtype: from.dtype, shape: [null, from.shape[1]!] })
    if (plan === undefined || target.shape[0]! >= plan.numRecvTokens) continue
    const rows = `${plan.numRecvTokens} rows arrive, it has ${target.shape[0]}`
    throw new MoeEpError('ERR_MOE_EP_CAPACITY', `out.${name}: ${rows}`)
  }
}

/** Rows that can arrive: as many as the buffer and the caller's memory hold. */
export function roomFor(out: DispatchOut | undefined, capacity: number): number {
  const rows = names.map((name) => out?.[name]?.shape[0] ?? capacity)
  return Math.min(capacity, ...rows)
}

/** Enqueues copies of what arrived into the caller's memory, and gives views of that instead. */
export function copyOut(stream: Stream, result: DispatchResult, out: DispatchOut): Partial<DispatchResult> {
  const copied: { -readonly [Name in keyof DispatchOut]: Tensor } = {}
  for (const name of names) {
    const target = out[name]
    const from = result[name]
    if (target === undefined || from === undefined) continue
    const view = target.slice(0, from.shape[0]!)
    enqueueCopyRows(stream, from, view)
    copied[name] = view
  }
  return copied
}
