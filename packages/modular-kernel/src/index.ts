export { BatchedPrepareAndFinalize, type BatchedPrepareAndFinalizeOptions } from './batched-prepare-and-finalize.js'
export { checkCompatibility, type Incompatibility, type LayerConfig } from './compatibility.js'
export { HtPrepareAndFinalize, type HtPrepareAndFinalizeOptions } from './ht-prepare-and-finalize.js'
export { LlPrepareAndFinalize, type LlPrepareAndFinalizeOptions } from './ll-prepare-and-finalize.js'
export { LocalPrepareAndFinalize } from './local-prepare-and-finalize.js'
export { MicroBatches, type MicroBatchTurn } from './micro-batches.js'
export { ModularKernel, type ModularKernelArguments, type ModularKernelOptions } from './modular-kernel.js'
export { NaivePrepareAndFinalize } from './naive-prepare-and-finalize.js'
export type {
  FinalizeArguments,
  PrepareAndFinalize,
  Prepared,
  PrepareArguments,
  RefuseOptions,
} from './prepare-and-finalize.js'
export type { InputQuant } from './quantize-input.js'
export { guardedReceiver, received, type Receiver } from './receiver.js'
export { type WorkspaceLease, WorkspaceManager, type WorkspaceOwner } from './workspace-manager.js'
