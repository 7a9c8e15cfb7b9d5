export type { IntranodeBufferSizes } from './buffer-layout.js'
export type { DispatchHandle, DispatchPlan } from './dispatch-handle.js'
export {
  type CallOptions,
  type CombineResult,
  type DispatchOptions,
  type DispatchResult,
  IntranodeBuffer,
  type IntranodeBufferOptions,
} from './intranode-buffer.js'
export * as reference from './reference.js'
