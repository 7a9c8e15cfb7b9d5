import { MoeEpError } from '@moe-ep/core'

/** Every operation that is measured, in the order of the report. The part before the dot is its package or subject. */
export const operationNames = [
  'layout.getDispatchLayout',
  'layout.getRankPrefixMatrix',
  'layout.getChannelPrefixMatrix',
  'quant.quantizePerTokenGroup',
  'quant.quantizePerTokenGroup-column-major-tma',
  'quant.quantizePerTokenGroup-ue8m0-packed',
  'quant.dequantizePerTokenGroup',
  'quant.dequantizePerTokenGroup-ue8m0-packed',
  'quant.quantizePerToken',
  'quant.dequantizePerToken',
  'quant.quantizePerTensor-static',
  'quant.quantizePerTensor-dynamic',
  'quant.dequantizePerTensor',
  'quant.quantizeBlock',
  'quant.dequantizeBlock',
  'quant.siluMul',
  'quant.siluMulQuantize-unfused',
  'quant.siluMulQuantize-vllm-contiguous',
  'quant.siluMulQuantize-vllm-masked',
  'quant.siluMulQuantize-f32',
  'quant.quantizeMxfp8',
  'quant.dequantizeMxfp8',
  'quant.quantizeMxfp4',
  'quant.dequantizeMxfp4',
  'quant.quantizeNvfp4',
  'quant.quantizeNvfp4-swizzled',
  'quant.dequantizeNvfp4',
  'quant.quantizeLogFmt10',
  'quant.dequantizeLogFmt10',
  'deepgemm-permute.countExpertNumTokens',
  'deepgemm-permute.permute-bf16',
  'deepgemm-permute.permute-fp8',
  'deepgemm-permute.permute-fp8-counting',
  'deepgemm-permute.permute-fp8-column-major',
  'deepgemm-permute.permute-fp8-packed',
  'deepgemm-permute.unpermuteAndReduce',
  'deepgemm-permute.permuteMasked-bf16',
  'deepgemm-permute.permuteMasked-fp8-column-major',
  'deepgemm-permute.permuteMasked-fp8-packed',
  'deepgemm-permute.unpermuteMaskedAndReduce',
  'deepgemm-permute.moePermute-bf16',
  'deepgemm-permute.moePermute-fp8',
  'deepgemm-permute.moeUnpermute',
  'intranode-ht.dispatch-bf16',
  'intranode-ht.dispatch-fp8',
  'intranode-ht.dispatch-cached-bf16',
  'intranode-ht.dispatch-cached-fp8',
  'intranode-ht.dispatchWorstCase-bf16',
  'intranode-ht.dispatchWorstCase-fp8',
  'intranode-ht.combine-staged',
  'intranode-ht.combine-zero-copy',
  'intranode-ht.dispatchGrouped-bf16',
  'intranode-ht.dispatchGrouped-fp8',
  'intranode-ht.dispatchGrouped-cached-bf16',
  'intranode-ht.combineGrouped-staged',
  'intranode-ht.combineGrouped-zero-copy',
  'low-latency.dispatch-bf16',
  'low-latency.dispatch-fp8',
  'low-latency.dispatch-mxfp8',
  'low-latency.dispatch-nvfp4',
  'low-latency.dispatch-send-fp8',
  'low-latency.dispatch-receive-fp8',
  'low-latency.combine',
  'low-latency.combine-weighted-at-dispatch',
  'low-latency.combine-logfmt',
  'low-latency.combine-send',
  'low-latency.combine-receive',
  'low-latency.layer',
  'low-latency.layer-graph',
  'transport.put',
  'transport.signalRoundTrip',
  'rendezvous.allGather',
  'rendezvous.barrier',
  'enqueue.empty',
  'enqueue.operation',
  'enqueue.eager',
  'enqueue.plan',
  'enqueue.graph',
  'enqueue.native-loop',
] as const

export type OperationName = (typeof operationNames)[number]

/** Whether ranks take part in an operation together: what goes wrong on one of them is then a matter of all. */
export function isBetweenRanks(name: OperationName): boolean {
  return /^(intranode-ht|low-latency|transport|rendezvous)\./.test(name)
}

/** What decides whether an operation can be measured. */
export interface Setting {
  readonly ranks: number
  readonly world: number
  readonly tokens: number
  readonly hidden: number
}

const anywhere: Setting = { ranks: 1, world: 1, tokens: 1, hidden: 32 }

/** What a low-latency buffer takes. */
const mostLowLatencyTokens = 1024

/**
 * Operations that a list asks for, in the order of the report. An entry is a full name, the part before the dot, the part after
 * it, or `all`, which leaves out what cannot be measured in the setting.
 * @throws ERR_MOE_EP_CONFIG for an entry that names nothing; ERR_MOE_EP_UNSUPPORTED for one that names what cannot be measured.
 */
export function selectOperations(text: string, setting: Setting = anywhere): OperationName[] {
  const entries = text.split(',').map((entry) => entry.trim())
  const unknown = entries.find((entry) => !operationNames.some((name) => matches(name, entry)))
  if (unknown !== undefined) {
    throw new MoeEpError(
      'ERR_MOE_EP_CONFIG',
      `--ops: expected all or some of ${operationNames.join(', ')}, received ${unknown}`,
    )
  }
  const named = entries.filter((entry) => entry !== 'all')
  const selected = operationNames.filter((name) => entries.some((entry) => matches(name, entry)))
  return selected.filter((name) => {
    const missing = missingFor(name, setting)
    if (missing === undefined) return true
    if (!named.some((entry) => matches(name, entry))) return false
    throw new MoeEpError('ERR_MOE_EP_UNSUPPORTED', `--ops ${name}: ${missing}`)
  })
}

/** Why an operation cannot be measured. */
function missingFor(name: OperationName, { ranks, world, tokens, hidden }: Setting): string | undefined {
  const isLowLatency = name.startsWith('low-latency.')
  if (world !== ranks && (isLowLatency || name.startsWith('intranode-ht.'))) {
    return `its rows come from all ranks of the world, but only ${ranks} of ${world} run`
  }
  if (isLowLatency && tokens > mostLowLatencyTokens) {
    return `it is for at most ${mostLowLatencyTokens} tokens a rank, not for ${tokens}`
  }
  if (name === 'low-latency.dispatch-nvfp4' && hidden % 32 !== 0) {
    return `rows of fp4 are for hidden sizes that are multiples of 32, not for ${hidden}`
  }
  return undefined
}

function matches(name: string, entry: string): boolean {
  return entry === 'all' || entry === name || name.split('.').includes(entry)
}
