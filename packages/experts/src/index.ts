export { type ExpertEngine, type ExpertEngineFactory, onnxEngines, referenceEngines } from './expert-engine.js'
export type { ExpertOperands, ExpertSizes } from './expert-sizes.js'
export type { ActivationFormat, Experts, ExpertsArguments, ExpertTokens, ExpertWeights } from './experts.js'
export { GroupedExperts } from './grouped-experts.js'
export { OnnxExpertEngine, type OnnxExpertEngineOptions, type OnnxExpertRunOptions } from './onnx/engine.js'
export { expertGraph } from './onnx/expert-graph.js'
export { encodeOnnxModel, type OnnxGraph, type OnnxNode, type OnnxValue } from './onnx/model.js'
export { disableOnnxTelemetry } from './onnx/runtime.js'
export { referenceExpert } from './reference-expert.js'
export {
  contiguousWeightAndReduce,
  delegateWeightAndReduce,
  noWeightAndReduce,
  type TopkWeightAndReduce,
  type WeightAndReduceArguments,
} from './topk-weight-and-reduce.js'
