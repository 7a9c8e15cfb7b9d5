import { featureAddon, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** Typed view of this package's addon; the only file that touches it. */
interface LayoutNative {
  getDispatchLayout(
    stream: StreamHandle,
    topkIdx: TensorHandle,
    numTokensPerRank: TensorHandle,
    numTokensPerRdmaRank: TensorHandle | undefined,
    numTokensPerExpert: TensorHandle,
    isTokenInRank: TensorHandle,
    ranksPerNode: number,
  ): void
  getRankPrefixMatrix(stream: StreamHandle, numTokensPerRank: TensorHandle, out: TensorHandle): void
  getChannelPrefixMatrix(stream: StreamHandle, isTokenInRank: TensorHandle, out: TensorHandle): void
}

export const native = featureAddon<LayoutNative>({
  packageName: '@moe-ep/layout',
  addonName: 'moe_ep_layout',
  moduleUrl: import.meta.url,
})
