import { featureAddon, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** Typed view of this package's addon; the only file that touches it. */
interface QuantNative {
  quantizePerTokenGroup(
    stream: StreamHandle,
    x: TensorHandle,
    values: TensorHandle,
    scales: TensorHandle,
    groupSize: number,
    deepep: boolean,
  ): void
  dequantizePerTokenGroup(
    stream: StreamHandle,
    values: TensorHandle,
    scales: TensorHandle,
    out: TensorHandle,
    groupSize: number,
  ): void
}

export const native = featureAddon<QuantNative>({
  packageName: '@moe-ep/quant',
  addonName: 'moe_ep_quant',
  moduleUrl: import.meta.url,
})
