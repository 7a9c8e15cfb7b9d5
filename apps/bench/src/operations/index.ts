import type { OperationName } from '../command/operation-names.js'
import { combineOf } from './combine.js'
import { dispatchOf } from './dispatch.js'
import { enqueueEmpty, enqueueOperation } from './enqueue.js'
import { dispatchLayout } from './layout.js'
import type { Operation } from './operation.js'
import { permuteOf } from './permute.js'
import { dequantize, quantize } from './quant.js'
import { allGather, barrier } from './rendezvous.js'
import { put, signalRoundTrip } from './transport.js'
import { unpermute } from './unpermute.js'

export const operations: Readonly<Record<OperationName, Operation>> = {
  'layout.getDispatchLayout': dispatchLayout,
  'quant.quantizePerTokenGroup': quantize,
  'quant.dequantizePerTokenGroup': dequantize,
  'deepgemm-permute.permute-bf16': permuteOf('bf16'),
  'deepgemm-permute.permute-fp8': permuteOf('fp8'),
  'deepgemm-permute.unpermuteAndReduce': unpermute,
  'intranode-ht.dispatch-bf16': dispatchOf({ kind: 'bf16', cached: false }),
  'intranode-ht.dispatch-fp8': dispatchOf({ kind: 'fp8', cached: false }),
  'intranode-ht.dispatch-cached-bf16': dispatchOf({ kind: 'bf16', cached: true }),
  'intranode-ht.dispatch-cached-fp8': dispatchOf({ kind: 'fp8', cached: true }),
  'intranode-ht.combine-staged': combineOf({ staged: true }),
  'intranode-ht.combine-zero-copy': combineOf({ staged: false }),
  'transport.put': put,
  'transport.signalRoundTrip': signalRoundTrip,
  'rendezvous.allGather': allGather,
  'rendezvous.barrier': barrier,
  'enqueue.empty': enqueueEmpty,
  'enqueue.operation': enqueueOperation,
}
