import { copyTensor, type Stream, Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import {
  dequantizeBlock,
  dequantizeLogFmt10,
  dequantizeMxfp4,
  dequantizeMxfp8,
  dequantizeNvfp4,
  dequantizePerTensor,
  dequantizePerTokenGroup,
  quantizeBlock,
  quantizeLogFmt10,
  quantizeMxfp4,
  quantizeMxfp8,
  quantizeNvfp4,
  quantizePerTensor,
  quantizePerToken,
  quantizePerTokenGroup,
  siluMul,
  siluMulQuantize,
} from '../src/index.js'
import { device, memoryOf, sameBytes } from './support.js'

type Outputs = Tensor | Record<string, Tensor>
/** Calls an operation; what it gave goes in again as `out`. */
type Call = (stream: Stream, out: Outputs | undefined) => Outputs

/** All operations on rows of `hidden` numbers; `hidden` decides which kernels they take. */
function operations(hidden: number): Record<string, Call> {
  const rows = 130
  const numbers = (width: number): Tensor =>
    Tensor.from(
      Array.from({ length: rows * width }, (_, i) => Math.sin(i) * 4),
      [rows, width],
      'bf16',
    )
  const [x, gated] = [numbers(hidden), numbers(2 * hidden)]
  const one = Tensor.from([1], [1], 'f32')
  const call =
    (operation: (options: object) => unknown): Call =>
    (stream, out) =>
      operation({ stream, ...(out ? { out } : {}) }) as Outputs
  const groups = quantizePerTokenGroup(x)
  const block = quantizeBlock(x)
  const whole = quantizePerTensor(x)
  const mxfp8 = quantizeMxfp8(x)
  const mxfp4 = quantizeMxfp4(x)
  const nvfp4 = quantizeNvfp4(x, one)
  const logFmt = quantizeLogFmt10(x)
  return {
    quantizePerTokenGroup: call((o) => quantizePerTokenGroup(x, o)),
    'quantizePerTokenGroup, columns with gaps': call((o) =>
      quantizePerTokenGroup(x, { ...o, scaleLayout: 'column-major-tma' }),
    ),
    quantizePerToken: call((o) => quantizePerToken(x, o)),
    quantizePerTensor: call((o) => quantizePerTensor(x, o)),
    'quantizePerTensor, scale given': call((o) => quantizePerTensor(x, { ...o, scale: one })),
    quantizeBlock: call((o) => quantizeBlock(x, o)),
    quantizeMxfp8: call((o) => quantizeMxfp8(x, o)),
    quantizeMxfp4: call((o) => quantizeMxfp4(x, o)),
    quantizeNvfp4: call((o) => quantizeNvfp4(x, one, o)),
    'quantizeNvfp4, swizzled': call((o) => quantizeNvfp4(x, one, { ...o, scaleLayout: 'swizzled' })),
    quantizeLogFmt10: call((o) => quantizeLogFmt10(x, o)),
    siluMul: call((o) => siluMul(gated, o)),
    siluMulQuantize: call((o) => siluMulQuantize(gated, o)),
    dequantizePerTokenGroup: call((o) => dequantizePerTokenGroup(groups.values, groups.scales, o)),
    dequantizePerTensor: call((o) => dequantizePerTensor(whole.values, whole.scale, o)),
    dequantizeBlock: call((o) => dequantizeBlock(block.values, block.scales, o)),
    dequantizeMxfp8: call((o) => dequantizeMxfp8(mxfp8.values, mxfp8.scales, o)),
    dequantizeMxfp4: call((o) => dequantizeMxfp4(mxfp4.values, mxfp4.scales, o)),
    dequantizeNvfp4: call((o) => dequantizeNvfp4(nvfp4.values, nvfp4.scales, one, o)),
    dequantizeLogFmt10: call((o) => dequantizeLogFmt10(logFmt.codes, logFmt.ranges, { ...o, hidden })),
  }
}

const tensorsOf = (out: Outputs): Tensor[] => (out instanceof Tensor ? [out] : Object.values(out))

describe.each([
  ['whole vectors', 512],
  ['no whole vectors', 66],
])('rows of %s: what follows a failure writes nothing', (_, hidden) => {
  const all = operations(hidden)
  test.each(Object.keys(all))('%s', async (name) => {
    const call = all[name]!
    const out = call(device.defaultStream, undefined)
    for (const tensor of tensorsOf(out)) {
      const memory = new Tensor({ memory: tensor.memory, dtype: 'u8', shape: [tensor.memory.byteLength] })
      copyTensor(Tensor.from(Array<number>(tensor.memory.byteLength).fill(0xa5), memory.shape, 'u8'), memory)
    }
    await device.defaultStream.synchronize()
    // Its kernel is right behind the one that fails.
    for (let round = 0; round < 3; round++) {
      const stream = device.createStream()
      stream.fail('ERR_MOE_EP_CAPACITY', 'full')
      call(stream, out)
      await expect(stream.synchronize()).rejects.toMatchObject({ code: 'ERR_MOE_EP_CAPACITY' })
      await stream.close()
    }
    for (const tensor of tensorsOf(out)) {
      const bytes = await memoryOf(tensor)
      expect(sameBytes(bytes, new Uint8Array(bytes.length).fill(0xa5))).toBe(true)
    }
  })
})
