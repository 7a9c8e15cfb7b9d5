export type { LowLatencyBufferSizes, LowLatencyProtocol, MaskPolicy } from './buffer-layout.js'
export type {
  AgreeOptions,
  CallOptions,
  DispatchOutputs,
  LowLatencyCombineOptions,
  LowLatencyCombineResult,
  LowLatencyDispatchOptions,
  LowLatencyDispatchResult,
  LowLatencyHandle,
  MaskOptions,
  PackedRows,
  RefuseDispatchOptions,
  RowSources,
  RecvLayout,
} from './call-types.js'
export type { LowLatencyBufferOptions } from './buffer-options.js'
export { LowLatencyBuffer } from './low-latency-buffer.js'
export type { RowFormatName } from './row-format.js'
export * as reference from './reference.js'
