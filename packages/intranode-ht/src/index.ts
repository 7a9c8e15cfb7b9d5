export { type IntranodeBufferSizes, maxGroupedRows } from './buffer-layout.js'
export type { DispatchHandle, DispatchPlan, GroupedDispatchHandle, HostCounts } from './dispatch-handle.js'
export type {
  CallOptions,
  CombineInputOptions,
  CombineOptions,
  CombineResult,
  DispatchOptions,
  DispatchOut,
  DispatchResult,
  GroupedCombineOptions,
  GroupedDispatchOptions,
  GroupedDispatchResult,
  RefuseOptions,
  SendOptions,
} from './dispatch-types.js'
export { IntranodeBuffer, type IntranodeBufferOptions } from './intranode-buffer.js'
export * as reference from './reference.js'
