import type { Operation } from '../operation.js'
import { dequantizeBlocks, quantizeBlocks } from './block.js'
import { dequantizeGroupsOf, quantizeGroupsOf, quantizeTokens } from './group.js'
import { dequantizeLogFmt, quantizeLogFmt } from './logfmt.js'
import { dequantizeMxOf, quantizeMxOf } from './mx.js'
import { dequantizeNvfp4Rows, quantizeNvfp4Of } from './nvfp4.js'
import { scaleKinds } from './scale-kind.js'
import { siluMulQuantizeOf, siluMultiply } from './silu-mul.js'
import { dequantizeTensor, quantizeTensorOf } from './tensor.js'

export const quantOperations = {
  'quant.quantizePerTokenGroup': quantizeGroupsOf(scaleKinds.rowMajor),
  'quant.quantizePerTokenGroup-column-major-tma': quantizeGroupsOf(scaleKinds.columnMajorTma),
  'quant.quantizePerTokenGroup-ue8m0-packed': quantizeGroupsOf(scaleKinds.packed),
  'quant.dequantizePerTokenGroup': dequantizeGroupsOf('f32'),
  'quant.dequantizePerTokenGroup-ue8m0-packed': dequantizeGroupsOf('packed'),
  'quant.quantizePerToken': quantizeTokens,
  'quant.dequantizePerToken': dequantizeGroupsOf('per-token'),
  'quant.quantizePerTensor-static': quantizeTensorOf('static'),
  'quant.quantizePerTensor-dynamic': quantizeTensorOf('dynamic'),
  'quant.dequantizePerTensor': dequantizeTensor,
  'quant.quantizeBlock': quantizeBlocks,
  'quant.dequantizeBlock': dequantizeBlocks,
  'quant.siluMul': siluMultiply,
  'quant.siluMulQuantize-unfused': siluMulQuantizeOf('unfused'),
  'quant.siluMulQuantize-vllm-contiguous': siluMulQuantizeOf('vllm-contiguous'),
  'quant.siluMulQuantize-vllm-masked': siluMulQuantizeOf('vllm-masked'),
  'quant.siluMulQuantize-f32': siluMulQuantizeOf('f32'),
  'quant.quantizeMxfp8': quantizeMxOf('mxfp8'),
  'quant.dequantizeMxfp8': dequantizeMxOf('mxfp8'),
  'quant.quantizeMxfp4': quantizeMxOf('mxfp4'),
  'quant.dequantizeMxfp4': dequantizeMxOf('mxfp4'),
  'quant.quantizeNvfp4': quantizeNvfp4Of('row-major'),
  'quant.quantizeNvfp4-swizzled': quantizeNvfp4Of('swizzled'),
  'quant.dequantizeNvfp4': dequantizeNvfp4Rows,
  'quant.quantizeLogFmt10': quantizeLogFmt,
  'quant.dequantizeLogFmt10': dequantizeLogFmt,
} as const satisfies Record<string, Operation>
