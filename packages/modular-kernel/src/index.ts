export { HtPrepareAndFinalize } from './ht-prepare-and-finalize.js'
export { ModularKernel, type ModularKernelArguments } from './modular-kernel.js'
export type { FinalizeArguments, PrepareAndFinalize, Prepared, PrepareArguments } from './prepare-and-finalize.js'
