import { dtypes, Tensor } from '@moe-ep/core'
import {
  quantizeBlock,
  quantizeLogFmt10,
  quantizeMxfp4,
  quantizeMxfp8,
  quantizeNvfp4,
  quantizePerTensor,
  quantizePerToken,
  quantizePerTokenGroup,
} from '@moe-ep/quant'
import { describe, expect, it } from 'vitest'
import { blockQuantizedBytes, type QuantizedFormat, quantizeBytes } from '../src/measure/quant-bytes.js'

/** Bytes of what a quantiser gives, without the gaps between columns. */
function bytesOf(tensors: readonly Tensor[]): number {
  return tensors.reduce((sum, { numel, dtype }) => sum + (numel * dtypes[dtype].bits) / 8, 0)
}

const quantizers: Readonly<Record<QuantizedFormat, (x: Tensor) => readonly Tensor[]>> = {
  fp8: (x) => Object.values(quantizePerTokenGroup(x)),
  fp8Packed: (x) => Object.values(quantizePerTokenGroup(x, { scaleFormat: 'ue8m0-packed' })),
  fp8PerToken: (x) => Object.values(quantizePerToken(x)),
  fp8PerTensor: (x) => [quantizePerTensor(x).values],
  mxfp8: (x) => Object.values(quantizeMxfp8(x)),
  mxfp4: (x) => Object.values(quantizeMxfp4(x)),
  nvfp4: (x) => Object.values(quantizeNvfp4(x, Tensor.from([1], [1], 'f32'))),
  logFmt10: (x) => Object.values(quantizeLogFmt10(x)),
}

describe('bytes of quantised rows', () => {
  it.each(Object.keys(quantizers) as QuantizedFormat[])('%s agree with the tensors of the package', (format) => {
    for (const [rows, hidden] of [
      [3, 128],
      [5, 272],
      [2, 1040],
    ] as const) {
      const x = Tensor.zeros([rows, hidden], 'bf16')
      expect(quantizeBytes({ rows, hidden }, format)).toBe(bytesOf([x, ...quantizers[format](x)]))
    }
  })

  it('blocks agree, edges included', () => {
    const weight = Tensor.zeros([130, 272], 'bf16')
    expect(blockQuantizedBytes({ rows: 130, hidden: 272 })).toBe(bytesOf(Object.values(quantizeBlock(weight))))
  })
})
