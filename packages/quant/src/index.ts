export {
  type DequantizedDType,
  dequantizePerTokenGroup,
  type DequantizePerTokenGroupOptions,
} from './dequantize-per-token-group.js'
export { defaultGroupSize, numGroupsOf } from './groups.js'
export {
  type GroupNumerics,
  type GroupQuantized,
  quantizePerTokenGroup,
  type QuantizePerTokenGroupOptions,
} from './quantize-per-token-group.js'
export * as reference from './reference.js'
