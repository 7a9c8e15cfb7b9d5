import { argumentError, MoeEpError, requireTensor, type Stream, type Tensor } from '@moe-ep/core'
import type { DispatchOut, DispatchResult } from './dispatch-types.js'
import { enqueueCopyRows } from './kernel-calls.js'

/**
 * Enqueues copies of what arrived into the caller's memory, and gives views of that instead.
 * @throws ERR_MOE_EP_ARGUMENT; ERR_MOE_EP_CAPACITY, with the rows that arrived, when there is too little of it.
 */
export function copyOut(stream: Stream, result: DispatchResult, out: DispatchOut): Partial<DispatchResult> {
  const copied: { -readonly [Name in keyof DispatchOut]: Tensor } = {}
  for (const name of ['recvX', 'recvXScales', 'recvTopkIdx', 'recvTopkWeights'] as const) {
    const target = out[name]
    if (target === undefined) continue
    const from = result[name]
    if (from === undefined) throw argumentError(`out.${name}`, 'nothing, for nothing of it was sent', target.toString())
    requireTensor(`out.${name}`, target, { dtype: from.dtype, shape: [null, from.shape[1]!] })
    const rows = from.shape[0]!
    if (target.shape[0]! < rows) {
      throw new MoeEpError('ERR_MOE_EP_CAPACITY', `out.${name}: ${rows} rows arrived, it has ${target.shape[0]}`)
    }
    const view = target.slice(0, rows)
    enqueueCopyRows(stream, from, view)
    copied[name] = view
  }
  return copied
}
