import { featureAddon, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** Rules for scales as the addon numbers them: GroupNumerics of moe_ep/quant/scales.h. */
export const groupNumericsCodes = { vllm: 0, deepep: 1, f32: 2, 'vllm-masked': 3, perToken: 4 } as const

/** Typed view of this package's addon; the only file that touches it. */
interface QuantNative {
  quantizePerTokenGroup(
    stream: StreamHandle,
    x: TensorHandle,
    values: TensorHandle,
    scales: TensorHandle,
    groupSize: number,
    numerics: number,
    powerOfTwo: boolean,
    upperBound: number,
  ): void
  dequantizePerTokenGroup(
    stream: StreamHandle,
    values: TensorHandle,
    scales: TensorHandle,
    out: TensorHandle,
    groupSize: number,
  ): void
  siluMul(stream: StreamHandle, x: TensorHandle, out: TensorHandle, counts: TensorHandle | null, limit: number): void
  siluMulQuantize(
    stream: StreamHandle,
    x: TensorHandle,
    values: TensorHandle,
    scales: TensorHandle,
    counts: TensorHandle | null,
    limit: number,
    groupSize: number,
    numerics: number,
    powerOfTwo: boolean,
  ): void
  quantizeBlock(
    stream: StreamHandle,
    weight: TensorHandle,
    values: TensorHandle,
    scales: TensorHandle,
    blockRows: number,
    blockColumns: number,
    powerOfTwo: boolean,
  ): void
  dequantizeBlock(
    stream: StreamHandle,
    values: TensorHandle,
    scales: TensorHandle,
    out: TensorHandle,
    blockRows: number,
    blockColumns: number,
  ): void
  quantizePerTensor(
    stream: StreamHandle,
    x: TensorHandle,
    values: TensorHandle,
    scale: TensorHandle,
    dynamic: boolean,
  ): void
  dequantizePerTensor(stream: StreamHandle, values: TensorHandle, scale: TensorHandle, out: TensorHandle): void
  quantizeMx(stream: StreamHandle, x: TensorHandle, values: TensorHandle, scales: TensorHandle, rule: number): void
  dequantizeMx(stream: StreamHandle, values: TensorHandle, scales: TensorHandle, out: TensorHandle): void
  quantizeNvfp4(
    stream: StreamHandle,
    x: TensorHandle,
    globalScale: TensorHandle,
    values: TensorHandle,
    scales: TensorHandle,
    swizzled: boolean,
  ): void
  dequantizeNvfp4(
    stream: StreamHandle,
    values: TensorHandle,
    scales: TensorHandle,
    globalScale: TensorHandle,
    out: TensorHandle,
    swizzled: boolean,
  ): void
  quantizeLogFmt10(stream: StreamHandle, x: TensorHandle, codes: TensorHandle, ranges: TensorHandle): void
  dequantizeLogFmt10(stream: StreamHandle, codes: TensorHandle, ranges: TensorHandle, out: TensorHandle): void
}

export const native = featureAddon<QuantNative>({
  packageName: '@moe-ep/quant',
  addonName: 'moe_ep_quant',
  moduleUrl: import.meta.url,
})
