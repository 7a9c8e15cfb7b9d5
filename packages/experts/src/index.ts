export { type ExpertEngine, type ExpertEngineFactory, onnxEngines, referenceEngines } from './expert-engine.js'
export type { ExpertOperands, ExpertSizes } from './expert-sizes.js'
export { BatchedExperts, type BatchedExpertsOptions } from './batched-experts.js'
export { expertsProblem, moeProblemSize, type MoeProblemSize } from './check-experts.js'
export type {
  Activation,
  ActivationFormat,
  Experts,
  ExpertsArguments,
  ExpertsCapabilities,
  ExpertTokens,
  ExpertWeights,
  QuantScheme,
} from './experts.js'
export { GroupedExperts } from './grouped-experts.js'
export { OnnxExpertEngine, type OnnxExpertEngineOptions, type OnnxExpertRunOptions } from './onnx/engine.js'
export { expertGraph } from './onnx/expert-graph.js'
export { encodeOnnxModel, type OnnxGraph, type OnnxNode, type OnnxValue } from './onnx/model.js'
export { disableOnnxTelemetry } from './onnx/runtime.js'
export { referenceExpert } from './reference-expert.js'
export {
  contiguousWeightAndReduce,
  batchedExpertMap,
  delegateWeightAndReduce,
  naiveBatchedWeightAndReduce,
  type NaiveBatchedOptions,
  noWeightAndReduce,
  type TopkWeightAndReduce,
  type WeightAndReduceArguments,
} from './topk-weight-and-reduce.js'
export {
  bytesOfSpec,
  type ExpertsProblem,
  type TensorSpec,
  type Workspaces,
  type WorkspaceShapes,
} from './workspaces.js'
