export * from './convert.js'
export { copyTensor } from './copy.js'
export { CudaDevice, exportMemory, ipcHandle, type MappingCount } from './cuda-device.js'
export { type AllocateOptions, CpuDevice, Device } from './device.js'
export {
  type DeviceInfo,
  getCudaDeviceOfRank,
  getDefaultDevice,
  getDevice,
  listDevices,
  type LocalRank,
} from './devices.js'
export * from './dtype.js'
export * from './error-codes.js'
export * from './error.js'
export { Event } from './event.js'
export { featureAddon } from './feature-addon.js'
export * from './float-formats.js'
export { Graph } from './graph.js'
export { requireInteger } from './integer-checks.js'
export type { AddonLocation } from './load-addon.js'
export { exp2F32, expF32, log2F32, siluF32 } from './math.js'
export { Memory, wrapArrayBuffer, wrapPointer } from './memory.js'
export { Plan } from './plan.js'
export type { EventHandle, GraphHandle, MemoryHandle, NativeHandle, StreamHandle, TensorHandle } from './native.js'
export { Stream, type StreamOptions } from './stream.js'
export { requireStream } from './stream-checks.js'
export { contiguousStrides, maxDimensions, Tensor, type TensorOptions } from './tensor.js'
export { overlap, requireAligned, requireTensor, type TensorRequirement } from './tensor-checks.js'
export { type OperationTrace, type TracedBytes, traceHostWork, traceOperation } from './tracing.js'
export { type WaitOptions, withWaitOptions } from './wait-options.js'
