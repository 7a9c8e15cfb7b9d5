import { MoeEpError } from '@moe-ep/core'

/** Every operation that is measured, in the order of the report. The part before the dot is its package or subject. */
export const operationNames = [
  'layout.getDispatchLayout',
  'quant.quantizePerTokenGroup',
  'quant.dequantizePerTokenGroup',
  'deepgemm-permute.permute-bf16',
  'deepgemm-permute.permute-fp8',
  'deepgemm-permute.unpermuteAndReduce',
  'intranode-ht.dispatch-bf16',
  'intranode-ht.dispatch-fp8',
  'intranode-ht.dispatch-cached-bf16',
  'intranode-ht.dispatch-cached-fp8',
  'intranode-ht.combine-staged',
  'intranode-ht.combine-zero-copy',
  'transport.put',
  'transport.signalRoundTrip',
  'rendezvous.allGather',
  'rendezvous.barrier',
  'enqueue.empty',
  'enqueue.operation',
] as const

export type OperationName = (typeof operationNames)[number]

/**
 * Operations that a list asks for, in the order of the report. An entry is a full name, the part before the dot, the part after
 * it, or `all`.
 * @throws ERR_MOE_EP_CONFIG for an entry that names nothing.
 */
export function selectOperations(text: string): OperationName[] {
  const entries = text.split(',').map((entry) => entry.trim())
  const unknown = entries.find((entry) => !operationNames.some((name) => matches(name, entry)))
  if (unknown !== undefined) {
    throw new MoeEpError(
      'ERR_MOE_EP_CONFIG',
      `--ops: expected all or some of ${operationNames.join(', ')}, received ${unknown}`,
    )
  }
  return operationNames.filter((name) => entries.some((entry) => matches(name, entry)))
}

function matches(name: string, entry: string): boolean {
  return entry === 'all' || entry === name || name.split('.').includes(entry)
}
