export { applyExpertMap } from './compat/apply-expert-map.js'
export { deepGemmBlockShape } from './compat/deep-gemm-block-shape.js'
export {
  deepgemmMoePermute,
  type DeepgemmMoePermuted,
  type DeepgemmMoePermuteOptions,
  type ExpertTokensMetadata,
} from './compat/deepgemm-moe-permute.js'
export {
  deepgemmUnpermuteAndReduce,
  type DeepgemmUnpermuteAndReduceOptions,
} from './compat/deepgemm-unpermute-and-reduce.js'
export { epGather, type EpGatherOptions } from './compat/ep-gather.js'
export { epScatter, type EpScatterOptions } from './compat/ep-scatter.js'
export { type AlignedMOptions, computeAlignedM, defaultAlignment } from './compute-aligned-m.js'
export { countExpertNumTokens, type CountExpertNumTokensOptions } from './count-expert-num-tokens.js'
export { expectedM, type ExpectedMOptions } from './expected-m.js'
export { moePermute, type MoePermuted, type MoePermuteOptions, type MoePermuteOut } from './moe-permute.js'
export { moeUnpermute, type MoeUnpermuteOptions } from './moe-unpermute.js'
export {
  type PermutedMasked,
  permuteMasked,
  type PermuteMaskedOptions,
  type PermuteMaskedOut,
} from './permute-masked.js'
export { type Permuted, permute, type PermuteOptions, type PermuteOut } from './permute.js'
export type { ReduceOutput } from './reduce-rows.js'
export * as reference from './reference/index.js'
export { expertNumTokensRoundUpAndSum, roundUp128 } from './rounding.js'
export type { RoutedRowsOptions } from './routed-rows.js'
export type { ScaleOptions } from './scales.js'
export { unpermuteAndReduce, type UnpermuteAndReduceOptions } from './unpermute-and-reduce.js'
export { unpermuteMaskedAndReduce } from './unpermute-masked-and-reduce.js'
