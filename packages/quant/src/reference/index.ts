/**
 * The same operations in plain TypeScript: the oracle. Slow, obvious, complete. Matrices are row-major plain arrays of numbers
 * or codes; every `Math.fround` is the rounding of one f32 operation.
 */
export { dequantizePerTokenGroup, quantizePerTokenGroup } from './group.js'
export { arrangeScales, packScales, unpackScales } from './scale-layout.js'
export { siluMul, siluMulQuantize } from './silu-mul.js'
export { dequantizeBlock, quantizeBlock } from './block.js'
export { dequantizePerTensor, quantizePerTensor, quantizePerToken } from './tensor.js'
export {
  arrangeNvfp4Scales,
  dequantizeMx,
  dequantizeNvfp4,
  quantizeMx,
  quantizeNvfp4,
  type SmallGroupCodes,
} from './small-groups.js'
export type { GroupCodes } from './group.js'
export { dequantizeLogFmt10, quantizeLogFmt10 } from './logfmt.js'
