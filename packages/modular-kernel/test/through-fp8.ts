import { Tensor } from '@moe-ep/core'
import {
  dequantizePerTensor,
  dequantizePerTokenGroup,
  quantizePerTensor,
  quantizePerToken,
  quantizePerTokenGroup,
  type QuantizePerTokenGroupOptions,
} from '@moe-ep/quant'
import { rowsOnHost } from '../../intranode-ht/test/world.js'
import type { InputQuant } from '../src/index.js'

/** Rows as they come out of a quantisation and back, f32; `options` are those of groups. */
export async function throughFp8(
  rows: readonly Float32Array[],
  quant: InputQuant,
  options: Pick<QuantizePerTokenGroupOptions, 'numerics' | 'scaleFormat'> = {},
): Promise<Float32Array[]> {
  if (rows.length === 0) return []
  const shape = [rows.length, rows[0]!.length]
  const x = Tensor.from(
    rows.flatMap((row) => Array.from(row)),
    shape,
    'bf16',
  )
  const dtype = 'f32'
  const exact = {
    'fp8-block'() {
      const { groupSize = 128 } = quant as { readonly groupSize?: number }
      const { values, scales } = quantizePerTokenGroup(x, { groupSize, ...options })
      return dequantizePerTokenGroup(values, scales, { groupSize, dtype })
    },
    'fp8-token'() {
      const { values, scales } = quantizePerToken(x)
      return dequantizePerTokenGroup(values, scales, { groupSize: shape[1]!, dtype })
    },
    'fp8-tensor'() {
      const { values, scale } = quantizePerTensor(x, quant as { readonly scale: Tensor })
      return dequantizePerTensor(values, scale, { dtype })
    },
  }[quant.kind]()
  await x.device.defaultStream.synchronize()
  return rowsOnHost(exact).map((row) => Float32Array.from(row))
}
