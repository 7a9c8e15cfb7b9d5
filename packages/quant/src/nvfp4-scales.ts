import { type Device, requireTensor, type Tensor } from '@moe-ep/core'

/** Elements that share a scale in NVFP4. */
export const nvfp4GroupSize = 16

/**
 * Where the scale of row m, group g lies: `'row-major'` in [M, G]; `'swizzled'` in [roundup(M, 128), roundup(G, 4)] at the flat
 * index ((m / 128) * (columns / 4) + g / 4) * 512 + (m % 32) * 16 + ((m % 128) / 32) * 4 + g % 4, zero elsewhere. Swizzle last:
 * the layout depends on the number of rows.
 */
export type Nvfp4ScaleLayout = 'row-major' | 'swizzled'

/** The shape of the e4m3 scales of an [M, H] matrix, for tensors that `out` brings. */
export function nvfp4ScaleShape(rows: number, hidden: number, layout: Nvfp4ScaleLayout): [number, number] {
  const groups = Math.ceil(hidden / nvfp4GroupSize)
  return layout === 'swizzled' ? [Math.ceil(rows / 128) * 128, Math.ceil(groups / 4) * 4] : [rows, groups]
}

/** @throws ERR_MOE_EP_ARGUMENT unless this is f32 [1] on the operation's device. */
export function requireGlobalScale(globalScale: Tensor, device: Device): void {
  requireTensor('globalScale', globalScale, { dtype: 'f32', shape: [1], device })
}
