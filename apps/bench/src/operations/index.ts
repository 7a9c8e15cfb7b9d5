import type { OperationName } from '../command/operation-names.js'
import { combineGroupedOf } from './combine-grouped.js'
import { combineOf } from './combine.js'
import { dispatchGroupedOf } from './dispatch-grouped.js'
import { dispatchOf } from './dispatch.js'
import { enqueueEmpty, enqueueLaunchOf, enqueueOperation } from './enqueue.js'
import { dispatchLayout } from './layout.js'
import { lowLatencyCombineOf, lowLatencyDispatchOf, lowLatencyLayerOf } from './low-latency.js'
import type { Operation } from './operation.js'
import { permuteOperations } from './permute/index.js'
import { channelPrefixMatrix, rankPrefixMatrix } from './prefix-matrices.js'
import { quantOperations } from './quant/index.js'
import { allGather, barrier } from './rendezvous.js'
import { put, signalRoundTrip } from './transport.js'

export const operations: Readonly<Record<OperationName, Operation>> = {
  'layout.getDispatchLayout': dispatchLayout,
  'layout.getRankPrefixMatrix': rankPrefixMatrix,
  'layout.getChannelPrefixMatrix': channelPrefixMatrix,
  ...quantOperations,
  ...permuteOperations,
  'intranode-ht.dispatch-bf16': dispatchOf({ kind: 'bf16', mode: 'fresh' }),
  'intranode-ht.dispatch-fp8': dispatchOf({ kind: 'fp8', mode: 'fresh' }),
  'intranode-ht.dispatch-cached-bf16': dispatchOf({ kind: 'bf16', mode: 'cached' }),
  'intranode-ht.dispatch-cached-fp8': dispatchOf({ kind: 'fp8', mode: 'cached' }),
  'intranode-ht.dispatchWorstCase-bf16': dispatchOf({ kind: 'bf16', mode: 'worst-case' }),
  'intranode-ht.dispatchWorstCase-fp8': dispatchOf({ kind: 'fp8', mode: 'worst-case' }),
  'intranode-ht.combine-staged': combineOf({ staged: true }),
  'intranode-ht.combine-zero-copy': combineOf({ staged: false }),
  'intranode-ht.dispatchGrouped-bf16': dispatchGroupedOf({ kind: 'bf16', cached: false }),
  'intranode-ht.dispatchGrouped-fp8': dispatchGroupedOf({ kind: 'fp8', cached: false }),
  'intranode-ht.dispatchGrouped-cached-bf16': dispatchGroupedOf({ kind: 'bf16', cached: true }),
  'intranode-ht.combineGrouped-staged': combineGroupedOf({ staged: true }),
  'intranode-ht.combineGrouped-zero-copy': combineGroupedOf({ staged: false }),
  'low-latency.dispatch-bf16': lowLatencyDispatchOf('bf16'),
  'low-latency.dispatch-fp8': lowLatencyDispatchOf('fp8'),
  'low-latency.dispatch-mxfp8': lowLatencyDispatchOf('mxfp8'),
  'low-latency.dispatch-nvfp4': lowLatencyDispatchOf('nvfp4'),
  'low-latency.dispatch-send-fp8': lowLatencyDispatchOf('fp8', 'send'),
  'low-latency.dispatch-receive-fp8': lowLatencyDispatchOf('fp8', 'receive'),
  'low-latency.combine': lowLatencyCombineOf({ weighted: false }),
  'low-latency.combine-weighted-at-dispatch': lowLatencyCombineOf({ weighted: true }),
  'low-latency.combine-logfmt': lowLatencyCombineOf({ weighted: true, useLogfmt: true }),
  'low-latency.combine-send': lowLatencyCombineOf({ weighted: true }, 'send'),
  'low-latency.combine-receive': lowLatencyCombineOf({ weighted: true }, 'receive'),
  'low-latency.layer': lowLatencyLayerOf({ graph: false }),
  'low-latency.layer-graph': lowLatencyLayerOf({ graph: true }),
  'transport.put': put,
  'transport.signalRoundTrip': signalRoundTrip,
  'rendezvous.allGather': allGather,
  'rendezvous.barrier': barrier,
  'enqueue.empty': enqueueEmpty,
  'enqueue.operation': enqueueOperation,
  'enqueue.eager': enqueueLaunchOf('eager'),
  'enqueue.plan': enqueueLaunchOf('plan'),
  'enqueue.graph': enqueueLaunchOf('graph'),
  'enqueue.native-loop': enqueueLaunchOf('native-loop'),
}
