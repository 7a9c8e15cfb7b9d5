import { featureAddon, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** Typed view of this package's addon; the only file that touches it. */
interface DeepgemmPermuteNative {
  countExpertNumTokens(
    stream: StreamHandle,
    topkIdx: TensorHandle,
    expertMap: TensorHandle | undefined,
    out: TensorHandle,
  ): void
  permute(
    stream: StreamHandle,
    x: TensorHandle,
    scales: TensorHandle | undefined,
    topkIdx: TensorHandle,
    expertMap: TensorHandle | undefined,
    reserved: TensorHandle | undefined,
    rows: TensorHandle,
    outScales: TensorHandle | undefined,
    expertIds: TensorHandle,
    inversePermutation: TensorHandle,
    expertStart: TensorHandle,
    expertNumTokens: TensorHandle,
    alignment: number,
    fillExpert: boolean,
    zeroPadding: boolean,
  ): void
  unpermuteAndReduce(
    stream: StreamHandle,
    expertRows: TensorHandle,
    topkIdx: TensorHandle,
    topkWeights: TensorHandle,
    inversePermutation: TensorHandle,
    expertMap: TensorHandle | undefined,
    out: TensorHandle,
  ): void
}

export const native = featureAddon<DeepgemmPermuteNative>({
  packageName: '@moe-ep/deepgemm-permute',
  addonName: 'moe_ep_deepgemm_permute',
  moduleUrl: import.meta.url,
})
