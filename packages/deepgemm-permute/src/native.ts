import { featureAddon, type StreamHandle, type TensorHandle } from '@moe-ep/core'

/** What `permute` of the addon does besides moving rows. */
export interface PermuteSettings {
  readonly alignment: number
  /** Rows of every expert in the masked layout; 0 for the contiguous one. */
  readonly rowsPerExpert: number
  /** Id of padding behind an expert's rows; undefined: the expert's own. */
  readonly idInside: number | undefined
  /** Id of rows behind the last expert; undefined: what was there. */
  readonly idBehind: number | undefined
  /** Whether padding rows are zeroed. */
  readonly zeroRows: boolean
  /** Whether the scales of padding rows are zeroed. */
  readonly zeroScales: boolean
  /** Whether slots without a local expert are numbered behind all rows, instead of -1. */
  readonly foreignLast: boolean
}

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
    expertIds: TensorHandle | undefined,
    inversePermutation: TensorHandle,
    expertStart: TensorHandle,
    expertEnd: TensorHandle | undefined,
    expertNumTokens: TensorHandle,
    settings: PermuteSettings,
  ): void
  unpermuteAndReduce(
    stream: StreamHandle,
    expertRows: TensorHandle,
    topkIdx: TensorHandle | undefined,
    topkWeights: TensorHandle,
    inversePermutation: TensorHandle,
    expertMap: TensorHandle | undefined,
    numValidRows: TensorHandle | undefined,
    out: TensorHandle,
  ): void
}

export const native = featureAddon<DeepgemmPermuteNative>({
  packageName: '@moe-ep/deepgemm-permute',
  addonName: 'moe_ep_deepgemm_permute',
  moduleUrl: import.meta.url,
})
